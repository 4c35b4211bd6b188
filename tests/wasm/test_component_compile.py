"""Compiling components: in a child as modules are, with limits by their size."""

import hashlib
from pathlib import Path

import pytest
import wasmtime
from wasmtime.component import Component

from sgl_router.wasm import compile as compiling_module
from sgl_router.wasm import component as component_module
from sgl_router.wasm.artifacts import ArtifactCache
from sgl_router.wasm.compile import CompileError, CompileLimits, Compiler
from sgl_router.wasm.component import ComponentCompiler, component_limits
from sgl_router.wasm.engine import make_component_engine, make_engine
from tests.wasm.compiling import ANSWER, nested_loops, section
from tests.wasm.component_guests import component

HEADER = b"\0asm\x0d\0\x01\0"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return make_component_engine()


def made(compiler: ComponentCompiler, wasm: bytes) -> Component:
    return compiler.compile(wasm, hashlib.sha256(wasm).hexdigest())


def refusal(compiler: ComponentCompiler | Compiler, wasm: bytes) -> CompileError:
    with pytest.raises(CompileError) as caught:
        compiler.compile(wasm, hashlib.sha256(wasm).hexdigest())
    return caught.value


def test_a_component_is_compiled_once(
    engine: wasmtime.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ArtifactCache(tmp_path / "cache")
    made(ComponentCompiler(engine, cache), component())

    def started(*_: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(compiling_module, "_start", started)
    assert "sgl:router/policy@1.0.0" in made(
        ComponentCompiler(engine, cache), component()
    ).type.exports(engine)


def test_each_compiler_takes_its_own_kind(engine: wasmtime.Engine) -> None:
    assert refusal(ComponentCompiler(engine, None), ANSWER).reason.code == "module_invalid"
    assert refusal(Compiler(make_engine(), None), component()).reason.code == "module_invalid"


def test_a_bomb_within_a_component_is_ended(
    engine: wasmtime.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        component_module, "component_limits", lambda size: CompileLimits(cpu_secs=1)
    )
    bomb = HEADER + section(1, nested_loops(1000, 100, 300))
    assert refusal(ComponentCompiler(engine, None), bomb).reason.code == "compile_time"


def test_limits_grow_with_the_size() -> None:
    """What is small gets no more than a module, and the largest what it takes."""
    small, largest = component_limits(1000), component_limits(64 * MIB)
    usual = CompileLimits()
    assert (small.memory_bytes, small.cpu_secs) == (usual.memory_bytes, usual.cpu_secs)
    assert largest.memory_bytes < 4096 * MIB
    python = component_limits(18_400_000)
    assert python.memory_bytes > 1200 * MIB  # it takes 900
    assert python.cpu_secs > 60  # it takes 14
    assert python.max_artifact_bytes > 100 * MIB  # it becomes 52
