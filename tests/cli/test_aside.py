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

def work():
    os.kill(os.getpid(), signal.SIGINT)
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


def test_ctrl_c_ends_the_process_whatever_the_work_does() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ,
        timeout=60,
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert done.stdout == "tidied up\n"
    assert done.stderr == ""
