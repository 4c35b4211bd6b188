"""What the tests of compiling share: modules as bytes, bombs, and children to look at."""

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from sgl_router.wasm.compile import CompileError, Compiler
from sgl_router.wasm.compile_child import HEADER, MAGIC

ANSWER = bytes(wasmtime.wat2wasm('(module (func (export "answer") (result i32) i32.const 42))'))
PLUGIN = Path(__file__).parents[2] / "src/sgl_router/policies/plugins/least_connections.wasm"
MAX_MODULE_BYTES = 4 * 1024 * 1024
MIB = 1024 * 1024
MAY_GROW_BYTES = 20 * MIB


def compiled(compiler: Compiler, wasm: bytes = ANSWER) -> wasmtime.Module:
    return compiler.compile(wasm, hashlib.sha256(wasm).hexdigest())


def refusal(compiler: Compiler, wasm: bytes = ANSWER) -> str:
    with pytest.raises(CompileError) as caught:
        compiled(compiler, wasm)
    text = caught.value.reason.text
    assert text.isprintable()
    assert len(text) < 3500  # 300 characters, escaped
    return text


def answer_of(engine: wasmtime.Engine, module: wasmtime.Module) -> object:
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    function = wasmtime.Instance(store, module, []).exports(store)["answer"]
    assert isinstance(function, wasmtime.Func)
    return function(store)


# ---- modules, as bytes


def leb(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + leb(number >> 7)


def section(kind: int, content: bytes) -> bytes:
    return bytes([kind]) + leb(len(content)) + content


def module(body: bytes, times: int = 1, locals_i32: int = 0) -> bytes:
    """A module of equal functions without parameters and results."""
    declared = b"\x01" + leb(locals_i32) + b"\x7f" if locals_i32 else b"\0"
    code = declared + body + b"\x0b"
    return (
        b"\0asm\x01\0\0\0"
        + section(1, b"\x01\x60\0\0")
        + section(3, leb(times) + b"\0" * times)
        + section(10, leb(times) + (leb(len(code)) + code) * times)
    )


def get_local(index: int) -> bytes:
    return b"\x20" + leb(index)


def add_into(index: int, other: int) -> bytes:
    return get_local(index) + get_local(other) + b"\x6a\x21" + leb(index)


def nested_loops(locals_i32: int, depth: int, times: int = 1) -> bytes:
    """Each local is changed within all the loops."""
    changes = b"".join(add_into(i, (i + 1) % locals_i32) for i in range(locals_i32))
    return module(b"\x03\x40" * depth + changes + b"\x20\0\x0d\0\x0b" * depth, times, locals_i32)


def many_functions() -> bytes:
    return module(b"", 1_000_000)


def locals_and_loops() -> bytes:
    loops = (
        b"\x03\x40" + add_into(i % 5000, (7 * i + 1) % 5000) + b"\x20\0\x0d\0\x0b"
        for i in range(100_000)
    )
    return module(b"".join(loops), locals_i32=5000)


def locals_in_nested_loops() -> bytes:
    return nested_loops(5000, 400)


def nested_blocks() -> bytes:
    return module(b"\x02\x40" * 1_000_000 + b"\x0b" * 1_000_000)


def huge_br_table() -> bytes:
    return module(b"\x02\x40\x41\0\x0e" + leb(3_000_000) + b"\0" * 3_000_001 + b"\x0b")


def br_tables_of_distinct_targets() -> bytes:
    """A thousand blocks, and in the innermost tables that lead to each of them."""
    table = b"\x02\x40\x41\0\x0e" + leb(1000) + b"".join(map(leb, range(1001))) + b"\x0b"
    return module(b"\x02\x40" * 1000 + table * 1500 + b"\x0b" * 1000)


def slow() -> bytes:
    """Takes half a minute of CPU time and little memory."""
    return nested_loops(200, 60, 1500)


# ---- what processes there are


def until(what: Callable[[], object], *, secs: float = 20.0) -> None:
    """Wait for something that comes about; if it does not, the test fails."""
    gives_up_at = time.monotonic() + secs
    while not what():
        assert time.monotonic() < gives_up_at, "what was waited for has not come about"
        time.sleep(0.005)


def compiling(parent: int | None = None) -> list[int]:
    """The children of a process (of this one by default) that compile."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            state, its_parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
            command = (path / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        ours = int(its_parent) == (parent or os.getpid())
        if ours and state != "Z" and b"sgl_router.wasm.compile_child" in command:
            found.append(int(path.name))
    return found


def gone(process: int) -> bool:
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    return stat.rpartition(")")[2].split()[0] in ("Z", "X")


def resident_bytes(field: str) -> int:
    status = Path("/proc/self/status").read_text()
    (line,) = (line for line in status.splitlines() if line.startswith(field + ":"))
    return int(line.split()[1]) * 1024


# ---- children that answer what they like


def replace_child(folder: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Compilers use another program: a package of the same name comes before the real one."""
    package = folder / "sgl_router" / "wasm"
    package.mkdir(parents=True, exist_ok=True)
    for each in (package, package.parent):
        (each / "__init__.py").touch()
    header = f"import os, struct, sys, time\nHEADER = struct.Struct({HEADER.format!r})\n"
    (package / "compile_child.py").write_text(header + program)
    monkeypatch.syspath_prepend(str(folder))


def saying(answer: bytes, status: int = 0) -> str:
    return f"os.write(1, {answer!r})\nos._exit({status})"


def framed(kind: int, answer: bytes, *, length: int | None = None) -> bytes:
    return HEADER.pack(MAGIC, kind, len(answer) if length is None else length) + answer
