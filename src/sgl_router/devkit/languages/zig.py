"""Zig: a core module, built with the compiler from PyPI."""

from collections.abc import Sequence
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_module, find_program

STACK_BYTES = 64 * 1024
"""Zig's default of 1 MiB would be all the memory that a plugin has."""

_CACHE = Path(".zig-cache")


def _find() -> Sequence[str] | None:
    return find_module("ziglang") or find_program("zig")


COMPILER = Tool(name="Zig 0.17", install="pip install 'ziglang==0.17.*'", find=_find)


def _build(folder: Path, _name: str, run: Run) -> Path:
    module = _CACHE / "policy.wasm"
    (folder / _CACHE).mkdir(exist_ok=True)
    options = [
        "-target",
        "wasm32-freestanding",
        "-OReleaseSafe",  # its checks give a trap a message, and cost less than 1 µs of a decision
        "-fno-strip",  # a trap's backtrace has the functions' names
        "-fno-entry",
        "-rdynamic",
        "--stack",
        str(STACK_BYTES),
        "--cache-dir",
        str(_CACHE),
        f"-femit-bin={module}",
    ]
    run([*COMPILER.command(), "build-exe", "src/abi.zig", *options], folder, {})
    return folder / module


ZIG = Language(name="zig", policy_file="src/policy.zig", tools=(COMPILER,), build=_build)
