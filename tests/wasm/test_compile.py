"""Compiling in a child process: modules, bombs, limits, and what is kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import wasmtime

from sgl_router.wasm.artifacts import ArtifactCache
from sgl_router.wasm.compile import CompileError, CompileLimits, Compiler, settings_fingerprint
from sgl_router.wasm.engine import make_engine
from tests.wasm.compiling import (
    MAX_MODULE_BYTES,
    MAY_GROW_BYTES,
    MIB,
    PLUGIN,
    answer_of,
    br_tables_of_distinct_targets,
    compiled,
    compiling,
    huge_br_table,
    leb,
    locals_and_loops,
    locals_in_nested_loops,
    many_functions,
    module,
    nested_blocks,
    refusal,
    replace_child,
    resident_bytes,
    section,
    slow,
)


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return make_engine()


@pytest.fixture
def child_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda program: replace_child(tmp_path, monkeypatch, program)


# ---- modules that compile


def test_a_module_is_compiled_and_runs(engine: wasmtime.Engine) -> None:
    assert answer_of(engine, compiled(Compiler(engine, None))) == 42
    assert compiling() == []


def test_a_usual_module_of_the_largest_size_fits_the_limits(engine: wasmtime.Engine) -> None:
    body = b"\x20\0\x41\x01\x6a\x21\0" * 400
    times = MAX_MODULE_BYTES // (len(body) + 10)
    wasm = module(body, times, 1)
    assert MAX_MODULE_BYTES * 0.95 < len(wasm) <= MAX_MODULE_BYTES
    compiled(Compiler(engine, None), wasm)


def test_what_is_not_valid_is_refused_in_wasmtimes_words(engine: wasmtime.Engine) -> None:
    compiler = Compiler(engine, None)
    reason = refusal(compiler, module(b"\x6a"))
    assert "the module is not valid" in reason
    assert "type mismatch" in reason
    reason = refusal(compiler, b"\0asm\x01\0\0\0\x0a")
    assert "unexpected end-of-file" in reason
    for hostile in (b"", b"(module)", bytes(range(256)) * 40):
        assert "the module is not valid" in refusal(compiler, hostile)


def test_words_from_a_module_are_cut_and_escaped(engine: wasmtime.Engine) -> None:
    name = ("\x1b[31m\u202e" * 10_000).encode()
    memory = section(5, b"\x01\0\x01")
    exports = section(7, b"\x02" + (leb(len(name)) + name + b"\x02\0") * 2)
    reason = refusal(Compiler(engine, None), b"\0asm\x01\0\0\0" + memory + exports)
    assert "\\x1b[31m\\u202e" in reason


# ---- bombs


@pytest.mark.parametrize(
    "bomb",
    [
        many_functions,
        locals_and_loops,
        locals_in_nested_loops,
        nested_blocks,
        huge_br_table,
        br_tables_of_distinct_targets,
    ],
)
def test_a_bomb_goes_off_in_the_child(engine: wasmtime.Engine, bomb: Callable[[], bytes]) -> None:
    """It is refused or it compiles; either way this process stays as it is."""
    wasm = bomb()
    assert len(wasm) <= MAX_MODULE_BYTES
    compiler = Compiler(engine, None, CompileLimits(memory_bytes=256 * MIB, cpu_secs=5))
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # the peak begins anew (proc(5))
    before = resident_bytes("VmRSS")
    try:
        compiled(compiler, wasm)
    except CompileError as error:
        assert "make the module smaller" in error.reason.text
    assert resident_bytes("VmHWM") - before < MAY_GROW_BYTES
    assert compiling() == []
    assert answer_of(engine, compiled(compiler)) == 42


def test_too_much_memory_is_named_with_its_limit(engine: wasmtime.Engine) -> None:
    compiler = Compiler(engine, None, CompileLimits(memory_bytes=128 * MIB))
    reason = refusal(compiler, locals_in_nested_loops())
    assert "134,217,728 bytes of memory" in reason


def test_too_much_cpu_time_is_named_with_its_limit(engine: wasmtime.Engine) -> None:
    reason = refusal(Compiler(engine, None, CompileLimits(cpu_secs=1)), slow())
    assert "1 s of CPU time" in reason


def test_too_much_time_is_named_with_its_limit(engine: wasmtime.Engine) -> None:
    reason = refusal(Compiler(engine, None, CompileLimits(wall_secs=0.25)), slow())
    assert "longer than 0.25 s" in reason
    assert compiling() == []


def test_too_much_machine_code_is_named_with_its_limit(engine: wasmtime.Engine) -> None:
    compiler = Compiler(engine, None, CompileLimits(max_artifact_bytes=1000))
    assert "more than 1,000 bytes" in refusal(compiler)


@pytest.mark.parametrize("mib", [1, 8, 16, 32, 40, 44, 48, 52, 60])
def test_however_little_memory_there_is_it_is_said(engine: wasmtime.Engine, mib: int) -> None:
    """At each size another part fails first: the interpreter, the linker, threads, wasmtime."""
    compiler = Compiler(engine, None, CompileLimits(memory_bytes=mib * MIB))
    try:
        compiled(compiler, PLUGIN.read_bytes())
    except CompileError as error:
        assert (
            f"{mib * MIB:,} bytes of memory" in error.reason.text
            or "its process" in error.reason.text
        )
    else:
        assert mib > 44, "the compiler alone is larger than that"
    assert compiling() == []


# ---- what is kept


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "compiled")


NO_CHILD = "sys.exit('a child was started')"


def kept(cache: ArtifactCache) -> list[Path]:
    return sorted(cache.folder.glob("*.artifact"))


def test_a_module_is_compiled_once(
    engine: wasmtime.Engine, cache: ArtifactCache, child_does: Callable[[str], None]
) -> None:
    compiled(Compiler(engine, cache))
    child_does(NO_CHILD)
    assert answer_of(engine, compiled(Compiler(engine, ArtifactCache(cache.folder)))) == 42
    later = make_engine()
    assert answer_of(later, compiled(Compiler(later, cache))) == 42
    assert "a child was started" in refusal(Compiler(engine, cache), PLUGIN.read_bytes())
    assert "a child was started" in refusal(Compiler(engine, None))


def test_other_settings_have_artifacts_of_their_own(
    engine: wasmtime.Engine, cache: ArtifactCache, child_does: Callable[[str], None]
) -> None:
    config = wasmtime.Config()
    config.epoch_interruption = True
    config.consume_fuel = True
    other = wasmtime.Engine(config)
    assert settings_fingerprint(other) != settings_fingerprint(engine)
    assert settings_fingerprint(make_engine()) == settings_fingerprint(engine)
    compiled(Compiler(engine, cache))
    child_does(NO_CHILD)
    assert "a child was started" in refusal(Compiler(other, cache))
    assert answer_of(engine, compiled(Compiler(engine, cache))) == 42  # its own is still there


def test_an_engine_that_the_child_does_not_have_is_said_to_be_so() -> None:
    config = wasmtime.Config()
    config.consume_fuel = True
    assert "does not load" in refusal(Compiler(wasmtime.Engine(config), None))


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"\x7fELF" + bytes(5000)])
def test_what_wasmtime_does_not_load_is_compiled_again(
    engine: wasmtime.Engine, cache: ArtifactCache, content: bytes
) -> None:
    compiler = Compiler(engine, cache)
    compiled(compiler)
    (file,) = kept(cache)
    artifact = cache.get(file.stem)
    assert artifact is not None
    cache.put(file.stem, content)  # with the right HMAC, as of another CPU
    assert answer_of(engine, compiled(compiler)) == 42
    assert cache.get(file.stem) == artifact


def test_a_damaged_artifact_is_compiled_again(
    engine: wasmtime.Engine, cache: ArtifactCache
) -> None:
    compiler = Compiler(engine, cache)
    compiled(compiler)
    (file,) = kept(cache)
    whole = file.read_bytes()
    file.write_bytes(whole[:-100] + bytes(100)[::-1] + b"x")
    assert answer_of(engine, compiled(compiler)) == 42
    assert file.read_bytes() == whole


def test_what_is_refused_is_not_kept(engine: wasmtime.Engine, cache: ArtifactCache) -> None:
    refusal(Compiler(engine, cache), b"no module")
    assert not cache.folder.exists()


def test_a_folder_that_cannot_be_used_is_no_failure(engine: wasmtime.Engine) -> None:
    cache = ArtifactCache(Path("/dev/null/compiled"))
    assert answer_of(engine, compiled(Compiler(engine, cache))) == 42
