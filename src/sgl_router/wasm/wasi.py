"""WASI for plugins: a deterministic stand-in for each call; `wasi_files` adds those on files.

The clock is the decision's `now_ms` (1 where that is 0, as it is before the first: Go's runtime
dies of a clock that says nothing), randomness is seeded with its entropy, nothing sleeps, and
arguments and environment are empty: a decision stays a function of its input. The calls and
their layouts are those of WASI preview 1 (`wasi_snapshot_preview1`).
"""

import logging
import random
import struct
from collections.abc import Callable

import wasmtime

from sgl_router.wasm.grants import WASI_MODULE
from sgl_router.wasm.wasi_output import MAX_OUTPUT_BYTES, GuestOutput
from sgl_router.wasm.wasi_types import WASI_TYPES

_log = logging.getLogger(__name__)

OK, BADF, FAULT, INVAL, IO, SPIPE = 0, 8, 21, 28, 29, 70
CHARACTER_DEVICE = 2
MAX_RANDOM_BYTES = 64 * 1024
MAX_SUBSCRIPTIONS = 64
MAX_IO_VECTORS = 64

_SUBSCRIPTION = struct.Struct("<8sB15xQ8xH6x")
_EVENT_CLOCK, _ABSOLUTE_TIME = 0, 1
_LAST_NS = (1 << 63) - 1

WasiFunction = Callable[..., int | None]
"""Of the caller's memory and its arguments, signed; returns an errno."""

_VALUES = {"i32": wasmtime.ValType.i32(), "i64": wasmtime.ValType.i64()}
STDIO = _STDIN, _STDOUT, _STDERR = range(3)


class _OutOfBounds(Exception):
    """The guest named memory that it does not have."""


class Memory:
    """A guest's memory during one call of the host, with every access checked."""

    def __init__(self, caller: wasmtime.Caller) -> None:
        memory = caller["memory"]
        assert isinstance(memory, wasmtime.Memory), "checked when the plugin was loaded"
        self._caller, self._memory = caller, memory

    def read(self, at: int, size: int) -> bytes:
        at &= 0xFFFFFFFF
        self.check(at, size)
        return bytes(self._memory.read(self._caller, at, at + size))

    def write(self, at: int, data: bytes) -> None:
        at &= 0xFFFFFFFF
        self.check(at, len(data))
        if data:
            self._memory.write(self._caller, data, at)

    def check(self, at: int, size: int) -> None:
        """Raises _OutOfBounds where `size` bytes from `at`, which is unsigned, are not there."""
        if size < 0 or at + size > self._memory.data_len(self._caller):
            raise _OutOfBounds


class WasiHost:
    """What a plugin's WASI calls see during one decision.

    Attributes:
        output: what the guest prints.
        exit_code: what the guest passed to `proc_exit`, or None; the call has then failed.
        stop: sets the deadline of the guest's call under way to now; `do_nothing` between calls.
            A function that runs already goes by the deadline it was entered with.
    """

    def __init__(self, plugin: str) -> None:
        self.stop: Callable[[], None] = do_nothing
        self.output = GuestOutput(plugin)
        self._now_ns = 1_000_000
        self._entropy = 0
        self._random: random.Random | None = None
        self.exit_code: int | None = None

    def begin(self, now_ms: int, entropy: int, stop: Callable[[], None]) -> None:
        """Start a decision; `stop` is of the instance that is about to be called."""
        self.stop = stop
        self._now_ns = (now_ms or 1) * 1_000_000
        self._entropy = entropy
        self._random = None
        self.output.begin()
        self.exit_code = None

    def end(self) -> None:
        """The call is over."""
        self.stop = do_nothing
        self.output.end()

    def define(self, linker: wasmtime.Linker, grants: frozenset[str]) -> None:
        """Define what is granted."""
        for name, function in self._functions().items():
            full_name = f"{WASI_MODULE}.{name}"
            if full_name in grants:
                signature = WASI_TYPES[full_name]
                linker.define_func(
                    WASI_MODULE,
                    name,
                    wasmtime.FuncType(
                        [_VALUES[value] for value in signature.params],
                        [_VALUES[value] for value in signature.results],
                    ),
                    _never_raises(function, has_result=bool(signature.results)),
                    access_caller=True,
                )

    def _functions(self) -> dict[str, WasiFunction]:
        """The implementation of each function."""
        return {
            "clock_time_get": self._clock_time_get,
            "clock_res_get": lambda m, _id, out: m.write(out, struct.pack("<Q", 1_000_000)),
            "poll_oneoff": self._poll_oneoff,
            "sched_yield": lambda _m: OK,
            "random_get": self._random_get,
            "fd_write": self._fd_write,
            "fd_read": self._fd_read,
            "fd_close": lambda _m, fd: _known(fd),
            "fd_seek": lambda _m, fd, *_: _known(fd) or SPIPE,
            "fd_fdstat_get": self._fd_fdstat_get,
            "fd_fdstat_set_flags": lambda _m, fd, _flags: _known(fd),
            "fd_prestat_get": lambda *_: BADF,
            "fd_prestat_dir_name": lambda *_: BADF,
            "args_get": lambda *_: OK,
            "args_sizes_get": self._no_strings,
            "environ_get": lambda *_: OK,
            "environ_sizes_get": self._no_strings,
            "proc_exit": self._proc_exit,
        }

    def _clock_time_get(self, memory: Memory, _id: int, _precision: int, out: int) -> int:
        memory.write(out, struct.pack("<Q", self._now_ns))
        return OK

    def _poll_oneoff(self, memory: Memory, subs: int, events: int, count: int, out: int) -> int:
        """Every subscription is ready at once: sleeping takes no time.

        The clock says that it has passed, for a guest that waits until it has.
        """
        if not 0 < count <= MAX_SUBSCRIPTIONS:
            return INVAL
        subscriptions = memory.read(subs, 48 * count)
        ready, now_ns = b"", self._now_ns
        for user_data, kind, timeout_ns, flags in _SUBSCRIPTION.iter_unpack(subscriptions):
            ready += struct.pack("<8sHB21x", user_data, OK, kind)
            if kind == _EVENT_CLOCK:
                from_ns = 0 if flags & _ABSOLUTE_TIME else now_ns
                self._now_ns = min(max(self._now_ns, from_ns + timeout_ns), _LAST_NS)
        memory.write(events, ready)
        memory.write(out, struct.pack("<I", count))
        return OK

    def _random_get(self, memory: Memory, at: int, size: int) -> int:
        if not 0 <= size <= MAX_RANDOM_BYTES:
            return INVAL
        if self._random is None:
            self._random = random.Random(self._entropy)
        memory.write(at, self._random.randbytes(size))
        return OK

    def _fd_write(self, memory: Memory, fd: int, vectors: int, count: int, out: int) -> int:
        if fd not in (_STDOUT, _STDERR):
            return BADF
        if not 0 <= count <= MAX_IO_VECTORS:
            return INVAL
        written = 0
        for at, size in struct.iter_unpack("<II", memory.read(vectors, 8 * count)):
            memory.check(at, size)
            shown = min(size, MAX_OUTPUT_BYTES)
            head = memory.read(at, shown)
            tail = head if shown == size else memory.read(at + size - shown, shown)
            self.output.write(fd, head, tail)
            written += size
        memory.write(out, struct.pack("<I", written & 0xFFFFFFFF))
        return OK

    def _fd_read(self, memory: Memory, fd: int, _vectors: int, _count: int, out: int) -> int:
        if fd != _STDIN:
            return BADF
        memory.write(out, bytes(4))
        return OK

    def _fd_fdstat_get(self, memory: Memory, fd: int, out: int) -> int:
        if _known(fd) != OK:
            return BADF
        memory.write(out, struct.pack("<B23x", CHARACTER_DEVICE))  # without any right
        return OK

    def _no_strings(self, memory: Memory, count: int, size: int) -> int:
        memory.write(count, bytes(4))
        memory.write(size, bytes(4))
        return OK

    def _proc_exit(self, _memory: Memory, code: int) -> None:
        self.exit_code = code
        self.stop()


def do_nothing() -> None:
    """No call is under way that could be ended."""


def _known(fd: int) -> int:
    return OK if fd in STDIO else BADF


def _never_raises(function: WasiFunction, *, has_result: bool) -> Callable[..., int | None]:
    """A host function for wasmtime.

    wasmtime-py keeps what a host function raises in one variable of the process, from which it
    can surface in another thread's call; so nothing is raised, and what goes wrong is an errno.
    """

    def call(caller: wasmtime.Caller, *args: int) -> int | None:
        try:
            result = function(Memory(caller), *args)
        except _OutOfBounds:
            result = FAULT
        except Exception:  # noqa: BLE001 (logged; and it must not reach wasmtime)
            _log.exception("a WASI call failed")
            result = IO
        return (result or OK) if has_result else None

    return call
