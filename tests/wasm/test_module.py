"""Modules that are refused before anything is compiled, and what the refusal says."""

import os
from pathlib import Path
from typing import Any

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.policies import WasmPolicyConfig, shipped_plugins
from sgl_router.wasm.module import MAX_MODULE_BYTES, read_module
from tests.wasm.guests import BUILTIN_NAMES, ONE_PAGE, assemble, custom, guest, leb128, wasi
from tests.wasm.refusals import (
    COMPONENT_HEADER,
    HEADER,
    PAGE,
    TABLE_SELECT,
    TABLE_TYPES,
    TYPES,
    exports,
    read,
    reason,
    reasons,
)
from tests.wasm.table_guests import table_guest


def test_a_good_module_is_described(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(guest(extra='(table 7 funcref) (func (export "other"))'))
    module = read_module(WasmPolicyConfig(str(path), "plugin"), BUILTIN_NAMES)
    assert module.abi == "json_v1"
    assert module.exports == TYPES.keys()
    assert module.table_elements == 7
    assert module.grants == frozenset()
    assert module.manifest.needs == {"request_text"}


@pytest.mark.parametrize(
    ("name", "abi"),
    [
        ("weighted_random", "json_v1"),
        ("least_connections", "json_v1"),
        ("power_of_two_table", "table_v1"),
    ],
)
def test_the_shipped_modules_may_be_loaded(name: str, abi: str) -> None:
    module = read_module(WasmPolicyConfig(str(shipped_plugins()[name]), "mine"), BUILTIN_NAMES)
    assert module.abi == abi
    assert module.manifest.version == "1.0.0"
    assert len(module.digest) == 64


def test_a_missing_file(tmp_path: Path) -> None:
    (text,) = read(tmp_path / "nothing.wasm").reasons
    assert str(tmp_path / "nothing.wasm") in text
    assert "module_path" in text


def test_a_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "link.wasm").symlink_to("nowhere")
    assert "module_path" in read(tmp_path / "link.wasm").reasons[0]


def test_a_directory(tmp_path: Path) -> None:
    assert "module_path" in read(tmp_path).reasons[0]


def test_a_fifo_without_a_writer_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.wasm")
    (text,) = read(tmp_path / "fifo.wasm").reasons
    assert "regular file" in text


def test_an_endless_device_is_not_read() -> None:
    (text,) = read(Path("/dev/zero")).reasons
    assert "regular file" in text


@pytest.mark.parametrize("path", ["a\0b", None, 7, b"\xff"])
def test_a_path_that_is_none(path: Any) -> None:
    with pytest.raises(PluginRefused, match="module_path"):
        read_module(WasmPolicyConfig(path, "plugin"), BUILTIN_NAMES)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "empty"),
        (b"(module)", "text"),
        (b"\n  (module (func))", "text"),
        (b"\x7fELF\x02\x01\x01" + bytes(100), "ELF"),
        (b"<!DOCTYPE html><html>", "HTML"),
        (b"\n<html>", "HTML"),
        (b"#!/bin/sh\n", "script"),
        (COMPONENT_HEADER, "the interface"),
        (COMPONENT_HEADER + bytes(100), "component"),
        (b"PK\x03\x04stuff", "PK"),
        (b"(component)", "component"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"BC\xc0\xde", "bitcode"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "git lfs pull"),
        (b'{"a": 1}', "{"),
        (b"\x1b[2J\xff\xfe", "\\x1b"),
    ],
)
def test_what_is_no_core_module_is_called_by_its_name(
    tmp_path: Path, content: bytes, found: str
) -> None:
    text = reason(tmp_path, content)
    assert found in text
    assert text.isprintable()


def test_the_header_alone_lacks_everything(tmp_path: Path) -> None:
    found = reasons(tmp_path, HEADER)
    assert len(found) == 5
    assert all(any(name in text for text in found) for name in (*TYPES, "memory"))


def test_another_version_of_the_format(tmp_path: Path) -> None:
    assert "header" in reason(tmp_path, b"\0asm\x02\0\0\0")
    assert "header" in reason(tmp_path, b"\0asm\x01")


def test_a_module_has_a_size(tmp_path: Path) -> None:
    wasm = guest()
    framing = len(custom("x", b"")) + 3  # a length above 2 MiB has four bytes
    filler = custom("x", bytes(MAX_MODULE_BYTES - len(wasm) - framing))
    path = tmp_path / "plugin.wasm"
    path.write_bytes(wasm + filler)
    assert path.stat().st_size == MAX_MODULE_BYTES
    read_module(WasmPolicyConfig(str(path), "plugin"), BUILTIN_NAMES)
    assert f"{MAX_MODULE_BYTES:,}" in reason(tmp_path, wasm + filler + b"\0")


def test_a_sparse_file_of_a_terabyte_is_refused_by_its_size(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(HEADER)
    os.truncate(path, 1 << 40)
    assert f"{MAX_MODULE_BYTES:,}" in read(path).reasons[0]


def test_settings_and_file_are_refused_together(tmp_path: Path) -> None:
    found = reasons(tmp_path, b"", max_execution_time_ms=0, fallback="nobody")
    assert len(found) == 3


def test_a_truncated_module(tmp_path: Path) -> None:
    wasm = guest()
    assert "malformed" in reason(tmp_path, wasm[:-1])
    for end in range(0, len(wasm) - 60, 7):
        assert reasons(tmp_path, wasm[:end])


def test_a_count_beyond_reason_is_refused_before_it_is_read(tmp_path: Path) -> None:
    section = leb128(0xFFFFFFFF)
    for number in (1, 2, 3, 7):
        text = reason(tmp_path, HEADER + bytes([number, len(section)]) + section)
        assert f"{0xFFFFFFFF:,}" in text


def test_every_import_that_is_not_granted_is_listed(tmp_path: Path) -> None:
    imports = "".join(
        [
            wasi("random_get", "i32 i32"),
            wasi("fd_write", "i32 i32 i32 i32"),
            wasi("path_open", "i32 i32 i32 i32 i32 i64 i64 i32 i32"),
            '(import "env" "now" (func (result i64)))',
        ]
    )
    found = reasons(tmp_path, guest(imports=imports), allowed_syscalls=["wasi:clocks"])
    assert len(found) == 4
    for text, name, group in zip(
        found,
        ("random_get", "fd_write", "path_open", "env.now"),
        ("'wasi:random'", "'wasi:stdio'", "'wasi:filesystem'", "nothing grants"),
        strict=True,
    ):
        assert name in text
        assert group in text
    assert all("allowed_syscalls" in text for text in found[:3])


def test_a_socket_is_granted_by_nothing(tmp_path: Path) -> None:
    wasm = guest(imports=wasi("sock_shutdown", "i32 i32"))
    everything = ["wasi:clocks", "wasi:random", "wasi:stdio", "wasi:environ", "wasi:filesystem"]
    text = reason(tmp_path, wasm, allowed_syscalls=everything)
    assert "sock_shutdown" in text
    assert "nothing grants" in text


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        ("(global i32)", "global"),
        ("(table 1 funcref)", "table"),
        ("(memory 1)", "memory"),
    ],
)
def test_only_functions_are_imported(tmp_path: Path, field: str, kind: str) -> None:
    found = reasons(tmp_path, guest(imports=f'(import "wasi_snapshot_preview1" "x" {field})'))
    assert kind in found[0]
    assert "wasi_snapshot_preview1.x" in found[0]


def test_an_import_of_a_granted_name_but_another_kind(tmp_path: Path) -> None:
    wasm = guest(imports='(import "wasi_snapshot_preview1" "random_get" (global i32))')
    text = reason(tmp_path, wasm, allowed_syscalls=["wasi:random"])
    assert "global" in text
    assert "random_get" in text


def test_the_name_of_an_import_is_escaped_and_cut(tmp_path: Path) -> None:
    name = "\\1b[31m\\e2\\80\\ae" + "x" * 10_000
    text = reason(tmp_path, guest(imports=f'(import "env" "{name}" (func))'))
    assert text.isprintable()
    assert "\\x1b" in text
    assert "\\u202e" in text
    assert len(text) < 400


@pytest.mark.parametrize("name", list(TYPES))
def test_each_export_is_required(tmp_path: Path, name: str) -> None:
    renamed = guest().replace(
        leb128(len(name)) + name.encode(), leb128(len(name)) + b"?" * len(name)
    )
    text = reason(tmp_path, renamed)
    assert name in text
    assert TYPES[name] in text


@pytest.mark.parametrize(
    ("name", "field", "found"),
    [
        ("init", "(func (export {}) (param i32))", "(i32) -> ()"),
        ("alloc", "(func (export {}) (param i64) (result i32) (i32.const 8))", "(i64) -> (i32)"),
        ("alloc", "(func (export {}) (param i32))", "(i32) -> ()"),
        ("dealloc", "(func (export {}) (param i32 f32))", "(i32, f32) -> ()"),
        (
            "select_worker",
            "(func (export {}) (param i32 i32) (result i32 f64) (i32.const 8) (f64.const 0))",
            "(i32, i32) -> (i32, f64)",
        ),
        ("select_worker", "(global (export {}) i32 (i32.const 0))", "global"),
        ("init", "(table (export {}) 1 funcref)", "table"),
    ],
)
def test_an_export_of_the_wrong_type(tmp_path: Path, name: str, field: str, found: str) -> None:
    text = reason(tmp_path, exports(**{name: field}))
    assert name in text
    assert found in text
    assert TYPES[name] in text


@pytest.mark.parametrize("name", ["_initialize", "on_request_complete"])
def test_an_optional_export_has_its_type_too(tmp_path: Path, name: str) -> None:
    text = reason(tmp_path, exports(**{name: "(func (export {}) (result i32) (i32.const 0))"}))
    assert name in text
    assert "() -> (i32)" in text


def test_a_table_plugin_is_described(tmp_path: Path) -> None:
    extra = """
      (func (export "sgl_table_v1_configure") (param i32 i32) (result i32) (i32.const 0))
      (func (export "on_request_complete") (param i32 i32))
      (func (export "_initialize")) (func (export "other"))"""
    path = tmp_path / "plugin.wasm"
    path.write_bytes(table_guest(extra=extra))
    module = read_module(WasmPolicyConfig(str(path), "plugin"), BUILTIN_NAMES)
    optional = {"sgl_table_v1_configure", "on_request_complete", "_initialize"}
    assert module.abi == "table_v1"
    assert module.exports == TABLE_TYPES.keys() | optional
    assert module.manifest.needs == {"request_text"}


def test_of_two_contracts_the_table_one_is_kept(tmp_path: Path) -> None:
    """What belongs to the other is not looked at."""
    path = tmp_path / "plugin.wasm"
    path.write_bytes(table_guest(extra='(func (export "select_worker") (param f64))'))
    module = read_module(WasmPolicyConfig(str(path), "plugin"), BUILTIN_NAMES)
    assert module.abi == "table_v1"
    assert module.exports == TABLE_TYPES.keys()


@pytest.mark.parametrize("name", ["init", "alloc", "dealloc"])
def test_each_export_is_required_of_a_table_plugin(tmp_path: Path, name: str) -> None:
    renamed = table_guest().replace(
        leb128(len(name)) + name.encode(), leb128(len(name)) + b"?" * len(name)
    )
    text = reason(tmp_path, renamed)
    assert name in text
    assert TYPES[name] in text


def test_all_that_a_table_plugin_lacks_is_in_one_report(tmp_path: Path) -> None:
    wasm = assemble(
        f"""(module (func (export "{TABLE_SELECT}") (param i32 i32) (result i32) (i32.const 0))
        (func (export "sgl_table_v1_configure")))"""
    )
    found = reasons(tmp_path, wasm)
    assert len(found) == 6
    for part in (*TABLE_TYPES, "(i32, i32, i32) -> (i32)", "sgl_table_v1_configure", "memory"):
        assert any(part in text for text in found), part


@pytest.mark.parametrize(
    ("field", "kind"),
    [
        (f'(global (export "{TABLE_SELECT}") i32 (i32.const 0))', "global"),
        (f'(table (export "{TABLE_SELECT}") 1 funcref)', "table"),
    ],
)
def test_what_decides_is_a_function(tmp_path: Path, field: str, kind: str) -> None:
    wasm = assemble(
        f"""(module {ONE_PAGE} (func (export "init")) {field}
        (func (export "alloc") (param i32) (result i32) (i32.const 8))
        (func (export "dealloc") (param i32 i32)))"""
    )
    text = reason(tmp_path, wasm)
    assert kind in text
    assert TABLE_TYPES[TABLE_SELECT] in text


def test_a_module_that_decides_nothing_is_told_of_both_contracts(tmp_path: Path) -> None:
    found = [text for text in reasons(tmp_path, HEADER) if "select_worker" in text]
    assert len(found) == 1
    assert TABLE_SELECT in found[0]


def test_wrong_imports_exports_and_memory_are_reported_together(tmp_path: Path) -> None:
    wasm = assemble('(module (import "env" "f" (func)) (func (export "init") (param i32)))')
    found = reasons(tmp_path, wasm)
    assert len(found) == 6


@pytest.mark.parametrize(
    ("memory", "found"),
    [
        ("", "memory"),
        ("(memory 1)", "memory"),
        ('(func (export "memory"))', "memory"),
        (f"{ONE_PAGE} (memory 1)", "2 memories"),
        ('(memory (export "memory") 1 2 shared)', "shared"),
        ('(memory (export "memory") i64 1)', "64-bit"),
        ('(memory (export "memory") 0)', "no page"),
        (f"{ONE_PAGE} (table 1 funcref) (table 1 funcref)", "2 tables"),
    ],
)
def test_one_plain_memory_and_one_table_at_most(tmp_path: Path, memory: str, found: str) -> None:
    assert found in reason(tmp_path, exports(memory))


@pytest.mark.parametrize(
    ("pages", "elements", "limit"),
    [(17, 0, 1024 * 1024), (2, 0, 2 * PAGE - 1), (1, 1, PAGE + 7), (1, 10_000_000, 1024 * 1024)],
)
def test_more_memory_at_the_start_than_allowed(
    tmp_path: Path, pages: int, elements: int, limit: int
) -> None:
    memory = f'(memory (export "memory") {pages}) (table {elements} funcref)'
    text = reason(tmp_path, exports(memory), max_memory_bytes=limit)
    assert f"{pages * PAGE + elements * 8:,}" in text
    assert f"{limit:,}" in text
    assert "max_memory_bytes" in text
    assert "-zstack-size" in text


def test_exactly_the_memory_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "plugin.wasm"
    path.write_bytes(exports('(memory (export "memory") 2) (table 4 funcref)'))
    config = WasmPolicyConfig(str(path), "plugin", max_memory_bytes=2 * PAGE + 4 * 8)
    assert read_module(config, BUILTIN_NAMES).table_elements == 4


def test_all_that_is_wrong_with_memories_and_tables_is_in_one_report(tmp_path: Path) -> None:
    memory = "(memory 40) (memory 1) (table 1 funcref) (table 1 funcref)"
    found = reasons(tmp_path, exports(memory))
    for part in ("2 tables", "2 memories", "under the name memory", "max_memory_bytes"):
        assert sum(part in text for text in found) == 1, part
