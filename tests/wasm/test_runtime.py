"""The engine that plugins run in: what it leaves out."""

import pytest
import wasmtime

from sgl_router.wasm.engine import make_engine
from tests.wasm.guests import assemble


@pytest.mark.parametrize(
    "fields",
    [
        "(memory 1 1 shared)",
        "(memory i64 1)",
        "(func $f (return_call $f))",
        "(tag $t) (func (throw $t))",
        "(type $s (struct (field i32)))",
        "(type $f (func)) (func (param (ref $f)))",
        "(func (param v128) (drop (i8x16.relaxed_swizzle (local.get 0) (local.get 0))))",
    ],
)
def test_what_a_policy_does_not_need_is_off(fields: str) -> None:
    wasm = assemble(f"(module {fields})")
    with pytest.raises(wasmtime.WasmtimeError):
        wasmtime.Module(make_engine(), wasm)


def test_what_toolchains_emit_by_default_is_on() -> None:
    wasm = assemble(
        """(module (memory 1) (table 1 funcref)
          (func (param i32) (result i32 i32) (i32.extend8_s (local.get 0)) (i32.const 1))
          (func (memory.fill (i32.const 0) (i32.const 0) (i32.const 1)))
          (func (result i32) (i32.trunc_sat_f32_u (f32.const 1)))
          (func (param v128) (result v128) (i8x16.neg (local.get 0))))"""
    )
    assert wasmtime.Module(make_engine(), wasm)
