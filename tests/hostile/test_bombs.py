"""Modules that are small and take minutes and gigabytes to compile: row 11 of the catalogue.

This process must not pay: it neither grows nor stops, whatever becomes of the compilation.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.policies import PolicyFactory
from sgl_router.wasm import runtime
from sgl_router.wasm.compile import CompileLimits, Compiler
from sgl_router.wasm.policy import WasmPolicy
from sgl_router.wasm.runtime import RuntimeOptions
from tests.hostile.modules import carrying
from tests.hostile.outcomes import HOSTILE, MAX_REFUSAL_CHARACTERS, Stand, neighbour_in
from tests.wasm.guests import Bench, leb128

GROWTH_BYTES = 64 << 20
"""Far below what compiling any of these takes: from 160 MB to more than there is."""

LIMITS = CompileLimits(cpu_secs=2)
"""What is killed by the usual limits is killed by these too, and sooner."""

_BLOCK, _LOOP, _END, _NOTHING = b"\x02\x40", b"\x03\x40", b"\x0b", b"\0"


def many_functions(count: int) -> bytes:
    return carrying(*[_NOTHING + _END] * count)


def nested_blocks(levels: int) -> bytes:
    return carrying(_NOTHING + _BLOCK * levels + _END * levels + _END)


def locals_in_loops(count: int, loops: int) -> bytes:
    """Each local is changed in one of the nested loops: it is live in all of them."""
    names = [leb128(number % count) for number in range(loops)]
    into = b"".join(_LOOP + b"\x20" + n + b"\x41\x01\x6a\x21" + n for n in names)
    out = b"".join(b"\x20" + n + b"\x0d\0" + _END for n in names)
    return carrying(b"\x01" + leb128(count) + b"\x7f" + into + out + _END)


def huge_tables(targets: int, times: int) -> bytes:
    table = b"\x41\0\x0e" + leb128(targets) + bytes(targets + 1)
    return carrying(_NOTHING + (_BLOCK + table + _END) * times + _END)


def most_resident() -> int:
    """The most memory that this process has had at once since it last asked, in bytes."""
    status = Path("/proc/self/status").read_text("ascii")
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    Path("/proc/self/clear_refs").write_text("5", "ascii")  # proc(5): resets the mark
    return int(line.split()[1]) * 1024


@pytest.fixture
def compiling(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[PolicyFactory]:
    """A factory that compiles as a router does, in processes of their own; but not as patiently."""
    monkeypatch.setattr(runtime, "Compiler", partial(Compiler, limits=LIMITS))
    factory = PolicyFactory(runtime=RuntimeOptions())
    yield factory
    factory.close()


@pytest.mark.parametrize(
    "wasm",
    [
        pytest.param(many_functions(1_000_000), id="11-10^6-functions"),
        pytest.param(many_functions(99_000), id="11-99,000-functions"),
        pytest.param(locals_in_loops(5_000, 5_000), id="11-5,000-locals-in-loops"),
        pytest.param(nested_blocks(1_000_000), id="11-10^6-nested-blocks"),
        pytest.param(huge_tables(65_000, 60), id="11-br_tables"),
    ],
)
async def test_a_compile_bomb(bench: Bench, compiling: PolicyFactory, wasm: bytes) -> None:
    """It is refused in words, or, where the limits of compiling allow it, a plugin like others."""
    neighbour = await neighbour_in(bench)
    config = bench.config(wasm, HOSTILE)
    before = most_resident()
    refusal = ""
    try:
        await compiling.load_wasm_plugin(config)
    except PluginRefused as error:
        refusal = str(error)
    assert most_resident() - before < GROWTH_BYTES
    assert (HOSTILE in refusal) is (compiling.list_wasm_plugins() == [])
    assert refusal.isprintable()
    assert len(refusal) < MAX_REFUSAL_CHARACTERS
    Stand(neighbour, neighbour).spares_its_neighbour()


@pytest.mark.parametrize(
    "wasm", [pytest.param(locals_in_loops(5_000, 5_000), id="11-sound-ones-follow")]
)
async def test_what_is_sound_is_compiled_after_a_bomb(
    bench: Bench, compiling: PolicyFactory, wasm: bytes
) -> None:
    with pytest.raises(PluginRefused, match="compiling the module was ended"):
        await compiling.load_wasm_plugin(bench.config(wasm, HOSTILE))
    await compiling.load_wasm_plugin(bench.config(carrying(_NOTHING + _END), HOSTILE))
    sound = compiling.create_by_name(HOSTILE)
    assert isinstance(sound, WasmPolicy)
    Stand(sound, sound).decides()
