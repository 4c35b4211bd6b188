"""The process that compiles one module; `sgl_router.wasm.compile` starts it and reads its answer.

    python -m sgl_router.wasm.compile_child MEMORY_BYTES CPU_SECS PARENT (module|component)

The module comes on standard input, until its end. The answer goes to standard output: `HEADER` with
`MAGIC`, the kind of the answer and its length, then the answer itself. Whatever is printed besides
goes to standard error.

A module can make the compiler use any amount of memory and time, or crash it, so this process takes
away from itself all that compiling does not need before it looks at one byte of it.
"""

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path

HEADER = struct.Struct("<4sBQ")
MAGIC = b"sglc"
ARTIFACT, REFUSED, NO_MEMORY = 1, 2, 3
"""What an answer is: the compiled module; why wasmtime refuses it (UTF-8); nothing."""

MODULE, COMPONENT = "module", "component"
"""What is to be compiled."""

_BINARY = b"\0asm"
_NICENESS = 5  # a router that is busy goes first
_FIRST_TO_BE_KILLED = "1000"
_MAX_REFUSAL_CHARS = 2000
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Compile what is on standard input; never returns."""
    memory_bytes, cpu_secs, parent = (int(argument) for argument in sys.argv[1:4])
    kind_of_module = sys.argv[4]
    _die_with(parent)
    _lower_limits(memory_bytes, cpu_secs)
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not be taken for an answer
    try:
        kind, answer = _compiled(sys.stdin.buffer.read, _no_more_files, kind_of_module)
    except MemoryError:
        kind, answer = NO_MEMORY, bytearray()
    with os.fdopen(answers, "wb") as pipe:
        pipe.write(HEADER.pack(MAGIC, kind, len(answer)))
        pipe.write(answer)
    os._exit(0)  # the compiler's memory need not be tidied up


def _compiled(
    read: Callable[[], bytes], lock: Callable[[], None], kind: str
) -> tuple[int, bytearray]:
    """The kind of the answer, and the answer. `lock` is called before the module is read."""
    import wasmtime  # noqa: PLC0415 - under the limits, which were set just now
    from wasmtime.component import Component  # noqa: PLC0415

    from sgl_router.wasm.engine import make_component_engine, make_engine  # noqa: PLC0415

    engine = make_component_engine() if kind == COMPONENT else make_engine()
    lock()
    wasm = read()
    if not wasm.startswith(_BINARY):  # wasmtime-py would take it for WebAssembly text
        return REFUSED, bytearray(b"it does not begin as a WebAssembly binary does")
    try:
        if kind == COMPONENT:
            return ARTIFACT, Component(engine, wasm).serialize()
        return ARTIFACT, wasmtime.Module(engine, wasm).serialize()
    except wasmtime.WasmtimeError as error:
        return REFUSED, bytearray(str(error)[:_MAX_REFUSAL_CHARS].encode())


def _die_with(parent: int) -> None:
    """End when the parent does, also when it is killed (prctl(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in ((_PR_SET_PDEATHSIG, signal.SIGKILL), (_PR_SET_NO_NEW_PRIVS, 1)):
        if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), f"prctl({option}) failed")
    if os.getppid() != parent:
        raise SystemExit("its parent has ended before it began")


def _lower_limits(memory_bytes: int, cpu_secs: int) -> None:
    os.nice(_NICENESS)
    # Short of memory, the system should kill this process and not the router. Where /proc cannot
    # be written to, the limit below is all there is.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_FIRST_TO_BE_KILLED, "ascii")
    _lower(resource.RLIMIT_AS, memory_bytes)
    _lower(resource.RLIMIT_CPU, cpu_secs, grace=1)  # SIGXCPU first, which says what it was
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, 0)  # not of pipes


def _no_more_files() -> None:
    """Those that are open stay open; no file, socket or pipe can be opened any more."""
    _lower(resource.RLIMIT_NOFILE, 0)


def _lower(what: int, limit: int, *, grace: int = 0) -> None:
    """Set a limit for good: at most what it may be at all. `grace` is added to the hard one."""
    _, hard = resource.getrlimit(what)
    highest = limit + grace if hard == resource.RLIM_INFINITY else min(limit + grace, hard)
    resource.setrlimit(what, (min(limit, highest), highest))


if __name__ == "__main__":
    main()
