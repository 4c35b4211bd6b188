"""Compiles modules in child processes, and keeps what they made.

Compiling is what a hostile module attacks first: kilobytes can cost gigabytes and minutes, or crash
the compiler. So it happens in a process of its own (`compile_child`) that has limits and is
started anew for each module; it is executed, not only forked, since an engine does not survive a
fork. What comes back is native code, and is believed no more and no less than the compiler itself.
"""

import hashlib
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from platform import machine
from typing import Generic, TypeVar

import wasmtime

from sgl_router.wasm.artifacts import ArtifactCache
from sgl_router.wasm.compile_child import (
    ARTIFACT,
    HEADER,
    MAGIC,
    MODULE,
    NO_MEMORY,
    REFUSED,
)
from sgl_router.wasm.deserialize import load_module
from sgl_router.wasm.printable import printable
from sgl_router.wasm.refusals import Reason, RefusalCode

_M = TypeVar("_M")
_EMPTY_MODULE = b"\0asm\x01\0\0\0"
_CHILD = "sgl_router.wasm.compile_child"
_COMPILER_THREADS = "2"
_READ_BYTES = 256 * 1024
_KEPT_WORDS_BYTES = 4096
_SHOWN_CHARS = 300
_SMALLER = "make the module smaller or its functions simpler"
_PASSED_ON = ("LD_LIBRARY_PATH", "PYTHONHOME")

# What Python, Rust's allocator, wasmtime and the dynamic linker say when there is no memory left.
_NO_MEMORY_WORDS = (
    b"MemoryError",
    b"memory allocation of",
    b"Cannot allocate memory",
    b"failed to map segment",
)


class CompileError(Exception):
    """A module was not compiled.

    Attributes:
        reason: one sentence that a person can act on, already cut and escaped, and its code.
    """

    def __init__(self, code: RefusalCode, text: str) -> None:
        self.reason = Reason(code, text)
        super().__init__(text)


@dataclass(frozen=True, slots=True)
class CompileLimits:
    """Of one child process.

    Attributes:
        memory_bytes: of address space (RLIMIT_AS). A usual module of 4 MiB takes about 280 MB.
        cpu_secs: of CPU time, of all its threads together (RLIMIT_CPU). The same takes about 7 s.
        wall_secs: from its start to its answer, on a machine that may have better to do.
        max_artifact_bytes: of what it answers; usual code becomes five times as large.
        at_once: children that run at the same time; further modules wait.
    """

    memory_bytes: int = 512 * 1024 * 1024
    cpu_secs: int = 30
    wall_secs: float = 60.0
    max_artifact_bytes: int = 64 * 1024 * 1024
    at_once: int = 2


def settings_fingerprint(engine: wasmtime.Engine) -> str:
    """What an engine compiles for: its settings, wasmtime's version and the CPU's features.

    All of them stand in every artifact (wasmtime compares them when it loads one), so the smallest
    artifact tells engines apart; of the version only its first number. SHA-256, hexadecimal.
    """
    return hashlib.sha256(wasmtime.Module(engine, _EMPTY_MODULE).serialize()).hexdigest()


class BaseCompiler(Generic[_M]):
    """Compiles for one engine, in children; for any thread."""

    _kind: str
    """What it compiles, as its children know it."""

    def __init__(
        self,
        engine: wasmtime.Engine,
        cache: ArtifactCache | None,
        limits: CompileLimits = CompileLimits(),
    ) -> None:
        """Compiled modules are taken from `cache` and put there; None keeps none.

        `engine` must have the settings of the one that a child makes for the same kind
        (`sgl_router.wasm.engine`).
        """
        self._engine = engine
        self._cache = cache
        self._limits = limits
        made_for = (self._kind, version("wasmtime"), machine(), settings_fingerprint(engine))
        self._made_for = "\n".join(made_for)
        self._turns = threading.Condition()
        self._children: set[subprocess.Popen[bytes]] = set()
        self._closed = False

    def _load(self, artifact: bytearray | memoryview) -> _M:
        """What a child has made. Raises wasmtime.WasmtimeError."""
        raise NotImplementedError

    def _limits_of(self, wasm: bytes) -> CompileLimits:
        """Of the child that compiles this."""
        return self._limits

    def compile(self, wasm: bytes, digest: str) -> _M:
        """The compiled module; blocks for as long as it takes.

        `digest` is the SHA-256 of `wasm`, hexadecimal. The thread that calls must live until the
        call returns, since its child ends with it (PR_SET_PDEATHSIG in prctl(2)).

        Raises CompileError.
        """
        if self._closed:
            raise _stopping()
        key = self._key(digest)
        kept = self._kept(key)
        if kept is not None:
            return kept
        made = self._compile_in_child(wasm)
        try:
            module = self._load(made)
        except wasmtime.WasmtimeError as error:
            raise CompileError(
                "compile_failed",
                f"wasmtime does not load what its compiler made: {_one_line(str(error))}",
            ) from error
        if self._cache is not None:
            self._cache.put(key, made)
        return module

    def _key(self, digest: str) -> str:
        return hashlib.sha256(f"{digest}\n{self._made_for}".encode()).hexdigest()

    def _kept(self, key: str) -> _M | None:
        if self._cache is not None and (artifact := self._cache.get(key)) is not None:
            try:
                return self._load(artifact)
            except wasmtime.WasmtimeError:
                self._cache.remove(key)
        return None

    def close(self) -> None:
        """End what is being compiled; nothing is compiled any more. A second time: nothing."""
        with self._turns:
            self._closed = True
            for child in self._children:
                _kill(child)
            self._turns.notify_all()

    def _compile_in_child(self, wasm: bytes) -> bytearray:
        """The artifact that a child has made. Raises CompileError."""
        with self._turns:
            self._turns.wait_for(lambda: self._closed or len(self._children) < self._limits.at_once)
            if self._closed:
                raise _stopping()
            limits = self._limits_of(wasm)
            child = _start(wasm, limits, self._kind)
            self._children.add(child)
        try:
            with _ended(child):
                said = _listen(child, limits)
        finally:
            with self._turns:
                self._children.remove(child)
                self._turns.notify()
        if self._closed:
            raise _stopping()
        return _artifact(said, child.returncode, limits)


class Compiler(BaseCompiler[wasmtime.Module]):
    """Compiles core modules."""

    _kind = MODULE

    def _load(self, artifact: bytearray | memoryview) -> wasmtime.Module:
        return load_module(self._engine, artifact)

    def compile_own(self, text: str) -> wasmtime.Module:
        """The compiled module of a WebAssembly text that is the router's own: in this process."""
        key = self._key(hashlib.sha256(text.encode()).hexdigest())
        kept = self._kept(key)
        if kept is not None:
            return kept
        module = wasmtime.Module(self._engine, text)
        if self._cache is not None:
            self._cache.put(key, module.serialize())
        return module


@dataclass(slots=True)
class _Said:
    """What a child has said.

    Attributes:
        answer: its standard output.
        words: the end of its standard error.
        cut_off: why nobody listened on, or None where it came to its end.
    """

    answer: bytearray
    words: bytes
    cut_off: CompileError | None


def _start(wasm: bytes, limits: CompileLimits, kind: str) -> subprocess.Popen[bytes]:
    """A child with the module on its standard input. Raises CompileError."""
    given = (str(limits.memory_bytes), str(limits.cpu_secs), str(os.getpid()), kind)
    try:
        # A file in memory: the child reads it when it likes, and nobody has to feed a pipe.
        module = os.memfd_create("module", os.MFD_CLOEXEC)
        try:
            with open(module, "wb", closefd=False) as file:
                file.write(wasm)
            os.lseek(module, 0, os.SEEK_SET)
            return subprocess.Popen(
                [sys.executable, "-P", "-B", "-m", _CHILD, *given],
                stdin=module,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_environment(),
                bufsize=0,
                process_group=0,  # a Ctrl-C at the terminal is for the router, which ends it
            )
        finally:
            os.close(module)
    except OSError as error:
        raise CompileError(
            "compile_failed", f"the process that compiles could not be started: {error}"
        ) from error


def _environment() -> dict[str, str]:
    """What the child needs to find the same packages, and none of the router's secrets."""
    kept = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    packages = os.pathsep.join(path for path in sys.path if Path(path).is_absolute())
    return kept | {
        "PYTHONPATH": packages,
        "RAYON_NUM_THREADS": _COMPILER_THREADS,  # wasmtime's; by default as many as cores
        "MALLOC_ARENA_MAX": _COMPILER_THREADS,  # each takes 128 MiB of address space at times
    }


@contextmanager
def _ended(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """After this the child is no more, and its pipes are closed."""
    with child:
        try:
            yield
        finally:
            _kill(child)


def _kill(child: subprocess.Popen[bytes]) -> None:
    """With all that it may have started; they are a process group."""
    if child.poll() is None:
        with suppress(ProcessLookupError):  # it ended just now
            os.killpg(child.pid, signal.SIGKILL)


def _listen(child: subprocess.Popen[bytes], limits: CompileLimits) -> _Said:
    """Everything that a child says, until its end or a limit."""
    assert child.stdout is not None
    assert child.stderr is not None
    said = _Said(bytearray(), b"", None)
    ends_at = time.monotonic() + limits.wall_secs
    longest = HEADER.size + limits.max_artifact_bytes
    with selectors.DefaultSelector() as selector:
        selector.register(child.stdout, selectors.EVENT_READ)
        selector.register(child.stderr, selectors.EVENT_READ)
        while selector.get_map():
            left_secs = ends_at - time.monotonic()
            if left_secs <= 0:
                said.cut_off = _too_slow(limits)
                return said
            for key, _ in selector.select(left_secs):
                data = os.read(key.fd, _READ_BYTES)
                if not data:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stderr:
                    said.words = (said.words + data)[-_KEPT_WORDS_BYTES:]
                else:
                    said.answer += data
            if len(said.answer) > longest:
                said.cut_off = _ended_for(
                    "compile_size",
                    f"the machine code has more than {limits.max_artifact_bytes:,} bytes",
                )
                return said
    try:
        child.wait(max(0.0, ends_at - time.monotonic()))
    except subprocess.TimeoutExpired:
        said.cut_off = _too_slow(limits)
    return said


def _artifact(said: _Said, status: int, limits: CompileLimits) -> bytearray:
    """The artifact of a child that ended with `status`. Raises CompileError where it has none."""
    if said.cut_off is not None:
        raise said.cut_off
    whole = False
    kind = 0
    if len(said.answer) >= HEADER.size:
        magic, kind, length = HEADER.unpack_from(said.answer)
        whole = magic == MAGIC and length == len(said.answer) - HEADER.size and status == 0
    if whole and kind == ARTIFACT:
        del said.answer[: HEADER.size]
        return said.answer
    if whole and kind == REFUSED:
        words = said.answer[HEADER.size :].decode("utf-8", "replace")
        raise CompileError("module_invalid", f"the module is not valid: {_one_line(words)}")
    if (whole and kind == NO_MEMORY) or any(words in said.words for words in _NO_MEMORY_WORDS):
        raise _ended_for(
            "compile_memory",
            f"it took more than the {limits.memory_bytes:,} bytes of memory that it may have",
        )
    if status == -signal.SIGXCPU:
        raise _ended_for("compile_time", f"it took more than {limits.cpu_secs} s of CPU time")
    how = _how_it_ended(status, said)
    raise CompileError("compile_failed", f"compiling the module failed: its process {how}")


def _too_slow(limits: CompileLimits) -> CompileError:
    return _ended_for("compile_time", f"it took longer than {limits.wall_secs:g} s")


def _ended_for(code: RefusalCode, why: str) -> CompileError:
    """For a child that was ended, or ended itself, at one of its limits."""
    return CompileError(code, f"compiling the module was ended: {why}; {_SMALLER}")


def _how_it_ended(status: int, said: _Said) -> str:
    """For a child that died of something that nobody has foreseen."""
    if status == -signal.SIGKILL:
        ended = "was killed (SIGKILL), perhaps because the machine is short of memory"
    elif status < 0:
        ended = f"died of signal {-status}"
        if -status in set(signal.Signals):
            ended = f"died of {signal.Signals(-status).name}"
    else:
        ended = f"ended with status {status} and no whole answer"
    words = said.words.decode("utf-8", "replace").strip()
    return f"{ended}: {_one_line(words[-_SHOWN_CHARS:])}" if words else ended


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()), _SHOWN_CHARS)


def _stopping() -> CompileError:
    return CompileError("router_stopping", "the router is stopping, and compiles nothing any more")
