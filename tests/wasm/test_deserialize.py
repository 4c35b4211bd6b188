"""Loading compiled code: it is what was compiled, and no second copy of it is made."""

import tracemalloc
from collections.abc import Callable

import pytest
import wasmtime
from wasmtime.component import Component

from sgl_router.wasm.deserialize import load_component, load_module
from sgl_router.wasm.engine import make_component_engine, make_engine
from tests.wasm.component_guests import component
from tests.wasm.guests import assemble

MODULE = assemble('(module (func (export "seven") (result i32) (i32.const 7)))')
LARGE = f'(data (i32.const 0) "{"x" * 1_000_000}")'


def test_a_module_runs() -> None:
    engine = make_engine()
    module = load_module(engine, wasmtime.Module(engine, MODULE).serialize())
    store = wasmtime.Store(engine)
    store.set_epoch_deadline(1)
    seven = wasmtime.Instance(store, module, []).exports(store)["seven"]
    assert isinstance(seven, wasmtime.Func)
    assert seven(store) == 7


def test_a_component_has_its_exports() -> None:
    engine = make_component_engine()
    made = Component(engine, component())
    loaded = load_component(engine, made.serialize())
    assert list(loaded.type.exports(engine)) == list(made.type.exports(engine))


@pytest.mark.parametrize(
    ("load", "engine"), [(load_module, make_engine()), (load_component, make_component_engine())]
)
@pytest.mark.parametrize("artifact", [b"", b"\0", b"\x7fELF" + bytes(4096)])
def test_what_is_no_artifact(
    load: Callable[[wasmtime.Engine, bytearray], object], engine: wasmtime.Engine, artifact: bytes
) -> None:
    given = bytearray(artifact)
    with pytest.raises(wasmtime.WasmtimeError):
        load(engine, given)
    given.append(0)  # nothing holds on to it
    assert given[:-1] == artifact


def test_it_is_not_copied() -> None:
    engine = make_component_engine()
    wasm = component(memory='(memory (export "memory") 20)', extra=LARGE)
    artifact = Component(engine, wasm).serialize()
    tracemalloc.start()
    try:
        load_component(engine, artifact)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < len(artifact) / 10
