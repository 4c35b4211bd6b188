"""What a module is refused for, and modules to be refused."""

from pathlib import Path
from typing import Any

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.policies import WasmPolicyConfig
from sgl_router.wasm.module import read_module
from tests.wasm.guests import BUILTIN_NAMES, ONE_PAGE, assemble

HEADER = b"\0asm\x01\0\0\0"
COMPONENT_HEADER = b"\0asm\x0d\0\x01\0"
PAGE = 64 * 1024
TYPES = {
    "init": "()",
    "alloc": "(i32) -> (i32)",
    "dealloc": "(i32, i32) -> ()",
    "select_worker": "(i32, i32) -> (i32)",
}
TABLE_SELECT = "sgl_table_v1_select"
TABLE_TYPES = {name: TYPES[name] for name in ("init", "alloc", "dealloc")} | {
    TABLE_SELECT: "(i32, i32, i32) -> (i32)"
}


def read(path: Path, **settings: Any) -> PluginRefused:
    """What a module is refused for."""
    config = WasmPolicyConfig(module_path=str(path), name="plugin", **settings)
    with pytest.raises(PluginRefused) as caught:
        read_module(config, BUILTIN_NAMES)
    refused = caught.value
    assert refused.plugin == "plugin"
    assert "plugin" in str(refused)
    assert all(reason in str(refused) for reason in refused.reasons)
    return refused


def reasons(tmp_path: Path, wasm: bytes, **settings: Any) -> tuple[str, ...]:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(wasm)
    return read(path, **settings).reasons


def reason(tmp_path: Path, wasm: bytes, **settings: Any) -> str:
    (only,) = reasons(tmp_path, wasm, **settings)
    return only


def exports(memory: str = ONE_PAGE, **replaced: str) -> bytes:
    """A module of the right exports, but for those that are replaced."""
    fields = {
        "init": "(func (export {}))",
        "alloc": "(func (export {}) (param i32) (result i32) (i32.const 8))",
        "dealloc": "(func (export {}) (param i32 i32))",
        "select_worker": "(func (export {}) (param i32 i32) (result i32) (i32.const 8))",
    }
    texts = [text.format(f'"{name}"') for name, text in (fields | replaced).items()]
    return assemble(f"(module {memory} {' '.join(texts)})")
