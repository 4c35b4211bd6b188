"""Work on a thread of its own."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from sgl_router.cli.aside import aside

INTERRUPTED = """
import os, signal, sys, threading
from sgl_router.cli.aside import aside

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored

def main_thread_waits():
    names, frame = set(), sys._current_frames()[threading.main_thread().ident]
    while frame:
        names.add(frame.f_code.co_name)
        frame = frame.f_back
    return "wait" in names and "start" not in names

def work():
    while not main_thread_waits():
        pass
    {signal}
    threading.Event().wait()

try:
    aside(work)
except KeyboardInterrupt:
    print("tidied up")
"""


def test_it_returns_and_raises_what_the_work_does() -> None:
    assert aside(threading.current_thread) is not threading.current_thread()
    with pytest.raises(ZeroDivisionError):
        aside(lambda: 1 // 0)


@pytest.mark.parametrize(
    "signal_to",
    ["os.kill(os.getpid(), ", "signal.pthread_kill(threading.get_ident(), "],
    ids=["process", "other thread"],
)
def test_ctrl_c_ends_the_process_whatever_the_work_does(signal_to: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED.format(signal=f"{signal_to}signal.SIGINT)")],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        timeout=60,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stdout == "tidied up\n"
    assert done.stderr == ""
