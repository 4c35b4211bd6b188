"""Bytes that are not a module, or no longer: they are refused, whatever they are."""

import functools

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.policies import shipped_plugins
from sgl_router.wasm.binary import MalformedModule, ModuleInfo, read_info
from tests.wasm.guests import Bench, guest, view

HEADER = b"\0asm\x01\0\0\0"


@functools.cache
def modules() -> tuple[bytes, ...]:
    """The shipped plugins, and one with every kind of section."""
    own = guest(
        imports='(import "wasi_snapshot_preview1" "random_get" '
        "(func $random_get (param i32 i32) (result i32)))",
        extra="(table 2 funcref) (elem (i32.const 0) $digit)",
        sections={"sgl-router.manifest": b'{"abi": 1}'},
    )
    return (*(path.read_bytes() for path in shipped_plugins().values()), own)


@st.composite
def damaged(draw: st.DrawFn, most_flips: int = 8) -> bytes:
    """A module with bytes changed and perhaps its end cut off."""
    wasm = bytearray(draw(st.sampled_from(modules())))
    # Half of the damage is done where the sections that describe a module stand.
    places = st.integers(8, len(wasm) - 1) | st.integers(8, min(300, len(wasm) - 1))
    for at in draw(st.lists(places, max_size=most_flips)):
        wasm[at] = draw(st.integers(0, 255))
    end = draw(st.just(len(wasm)) | st.integers(0, len(wasm)))
    return bytes(wasm[:end])


def describes_or_refuses(data: bytes) -> None:
    try:
        info = read_info(data)
    except MalformedModule as error:
        assert str(error)
    else:
        assert isinstance(info, ModuleInfo)


@given(st.binary(max_size=400))
def test_any_bytes_are_described_or_malformed(data: bytes) -> None:
    describes_or_refuses(data)
    describes_or_refuses(HEADER + data)


_SECTION = st.tuples(st.integers(0, 13), st.binary(max_size=60))


@given(st.lists(_SECTION, max_size=6))
def test_any_sections_are_described_or_malformed(sections: list[tuple[int, bytes]]) -> None:
    framed = (bytes([number, len(body)]) + body for number, body in sections)
    describes_or_refuses(HEADER + b"".join(framed))


@settings(max_examples=300)
@given(damaged())
def test_a_damaged_module_is_described_or_malformed(data: bytes) -> None:
    describes_or_refuses(data)


def test_every_truncation_is_described_or_malformed() -> None:
    wasm = modules()[-1]
    for end in range(len(wasm)):
        describes_or_refuses(wasm[:end])


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(damaged(most_flips=3))
async def test_a_damaged_module_is_refused_or_decides_or_fails(bench: Bench, data: bytes) -> None:
    try:
        policy = await bench.policy(
            data, max_execution_time_ms=20, allowed_syscalls=["wasi:random"]
        )
    except PluginRefused as refused:
        assert refused.plugin == "plugin"
        return
    workers = view(True, False, True)
    try:
        index = policy.select_worker(workers, RequestView("1", "/"))
    except DecisionError as error:
        assert policy.failures[error.kind] == 1
    else:
        assert index is None or workers.healthy[index]
    assert bench.factory.unload_wasm_plugin("plugin")


async def test_what_is_damaged_is_sound_to_begin_with(bench: Bench) -> None:
    for number, wasm in enumerate(modules()):
        policy = await bench.policy(wasm, f"p{number}", allowed_syscalls=["wasi:random"])
        assert policy.select_worker(view(True, False), RequestView("1", "/")) == 0
    assert len(bench.factory.list_wasm_plugins()) == 4
