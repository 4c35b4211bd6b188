"""Work that calls guests, on a thread of its own."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import NoReturn, TypeVar

_R = TypeVar("_R")

_LOOK_SECS = 0.2
"""How often the main thread looks for a signal. One that another thread got from the kernel, or
that came just before the main thread began to wait, does not end its wait."""

_INTERRUPTED = 130  # as a shell says of a program that Ctrl-C has ended


def aside(work: Callable[[], _R]) -> _R:
    """What `work` returns or raises, which goes on elsewhere meanwhile.

    A signal is handled by the main thread, wherever it is. In a function that a guest calls, the
    KeyboardInterrupt would be lost in wasmtime, which goes on with a result that there is not, and
    may end the process with SIGABRT. Here it finds the main thread waiting.

    Raises KeyboardInterrupt, soon after Ctrl-C; the work is given up with the process.
    """
    result: Future[_R] = Future()

    def make() -> None:
        try:
            result.set_result(work())
        except Exception as error:  # noqa: BLE001 (raised again where it is waited for)
            result.set_exception(error)

    try:
        threading.Thread(target=make, name="plugin", daemon=True).start()
        while not result.done():
            wait([result], _LOOK_SECS)
        return result.result()
    except KeyboardInterrupt:
        atexit.register(_leave)
        raise


def _leave() -> NoReturn:
    """End without taking the interpreter from a thread that a guest may be calling back to."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_INTERRUPTED)
