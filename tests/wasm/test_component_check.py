"""What a component is refused for, before it is compiled and after that."""

import dataclasses
from pathlib import Path

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.policies import WasmPolicyConfig
from sgl_router.wasm.abi.component_v1 import DECISION, FUNCTIONS, INPUT, INTERFACE, WORKER
from sgl_router.wasm.abi.wit_types import Function, ListOf, Option, Record, Result
from sgl_router.wasm.module import check_module
from tests.wasm.component_guests import RECORDS, component
from tests.wasm.guests import BUILTIN_NAMES, Bench, assemble

RESULT = Result(None, "string")
WIT = Path(__file__).parents[2] / "src/sgl_router/wasm/wit/policy.wit"


def refused(wasm: bytes, **settings: object) -> PluginRefused:
    config = WasmPolicyConfig("plugin.wasm", "plugin", **settings)  # type: ignore[arg-type]
    with pytest.raises(PluginRefused) as caught:
        check_module(config, wasm, BUILTIN_NAMES)
    return caught.value


async def refused_by_types(bench: Bench, wasm: bytes) -> PluginRefused:
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(wasm)
    return caught.value


def test_a_component_is_known_by_its_header() -> None:
    module = check_module(WasmPolicyConfig("p.wasm", "plugin"), component(), BUILTIN_NAMES)
    assert module.abi == "component_v1"
    assert module.exports == {"init", "select_worker"}
    assert module.component is not None
    assert len(module.component.memories) == 1


def test_it_is_told_of_outcomes_where_it_asks_for_that() -> None:
    wasm = component(sections={"sgl-router.manifest": b'{"needs": ["outcomes"]}'})
    module = check_module(WasmPolicyConfig("p.wasm", "plugin"), wasm, BUILTIN_NAMES)
    assert "on_request_complete" in module.exports


def test_grants_make_no_difference() -> None:
    config = WasmPolicyConfig("p.wasm", "plugin", allowed_syscalls=["wasi:filesystem"])
    module = check_module(config, component(), BUILTIN_NAMES)
    assert not module.grants


def test_another_interface() -> None:
    refusal = refused(component(interface="sgl:router/policy@0.9.0"))
    assert refusal.codes == ("component_interface_missing",)
    assert INTERFACE in refusal.reasons[0]
    assert "sgl:router/policy@0.9.0" in refusal.reasons[0]


def test_no_export_at_all() -> None:
    refusal = refused(assemble("(component)"))
    assert refusal.codes == ("component_interface_missing",)
    assert "it exports nothing" in refusal.reasons[0]


def test_the_interface_as_a_component() -> None:
    text = f'(component (component $c) (export "{INTERFACE}" (component $c)))'
    assert refused(assemble(text)).codes == ("component_wrong_type",)


def test_every_import_is_told_of() -> None:
    outer = """(import "wasi:cli/environment@0.2.0" (instance
        (export "get-environment" (func (result (list (tuple string string)))))))
      (import "host-log" (func (param "text" string)))"""
    refusal = refused(component(outer=outer))
    assert refusal.codes == ("component_import", "component_import")
    wasi, other = refusal.reasons
    assert "instance wasi:cli/environment@0.2.0" in wasi
    assert "--stub-wasi" in wasi
    assert "function host-log" in other
    assert "--stub-wasi" not in other


def test_many_imports_are_told_of_in_short() -> None:
    outer = " ".join(f'(import "f{i}" (func))' for i in range(500))
    refusal = refused(component(outer=outer))
    assert len(refusal.reasons) == 11
    assert "490 more" in refusal.reasons[-1]


def test_two_memories_in_all_its_modules() -> None:
    outer = "(core module (memory 1))"
    assert refused(component(outer=outer)).codes == ("memories_many",)


@pytest.mark.parametrize(
    ("memory", "code"),
    [
        ('(memory (export "memory") i64 2)', "memory_not_plain"),
        ('(memory (export "memory") 2 2 shared)', "memory_not_plain"),
    ],
)
def test_a_memory_of_another_kind(memory: str, code: str) -> None:
    assert code in refused(_without_lifting(memory)).codes


def _without_lifting(memory: str) -> bytes:
    return assemble(f"(component (core module {memory}))")


def test_the_memory_at_the_start() -> None:
    table = "(table 1000 funcref) (table 10 funcref)"
    refusal = refused(component(extra=table), max_memory_bytes=131_072 + 16_000 - 1)
    assert refusal.codes == ("memory_at_start",)
    assert "147,072" in refusal.reasons[0]
    assert "147,071" in refusal.reasons[0]
    config = WasmPolicyConfig("p.wasm", "plugin", max_memory_bytes=147_072)
    check_module(config, component(extra=table), BUILTIN_NAMES)


async def test_it_runs_within_what_it_was_accepted_with(bench: Bench) -> None:
    table = '(table (export "t") 1000 funcref) (table (export "u") 10 funcref)'
    policy = await bench.policy(component(extra=table), max_memory_bytes=147_072)
    assert policy.current.self_test.selected_worker == 0


def test_the_settings_and_the_manifest_are_checked_too() -> None:
    manifest = {"sgl-router.manifest": b'{"abi": 2}'}
    refusal = refused(component(sections=manifest), lane="sideways", sha256="00" * 32)
    assert set(refusal.codes) == {"manifest_abi", "choice_unknown", "digest_mismatch"}


# ---- types


def test_the_types_are_those_of_the_interface() -> None:
    """Field by field, as `policy.wit` has them."""
    lines = WIT.read_text("utf-8").replace("%", "").splitlines()
    text = "\n".join(line for line in lines if not line.strip().startswith("///"))
    for name, record in RECORDS.items():
        body = text.partition(f"record {name} {{")[2].partition("}")[0]
        found = [line.strip().rstrip(",") for line in body.splitlines() if line.strip()]
        assert found == [f"{field}: {_named(str(of))}" for field, of in record.fields]
    for name, function in FUNCTIONS.items():
        assert f"{name}: {_named(str(function))};" in text


def _named(of: str) -> str:
    for name, record in RECORDS.items():
        of = of.replace(str(record), name)
    for name, record in reversed(RECORDS.items()):
        of = of.replace(_named_inside(record), name)
    return of


def _named_inside(record: Record) -> str:
    """As it is written when the records within it have been replaced by their names."""
    text = str(record)
    for name, other in RECORDS.items():
        if other is not record:
            text = text.replace(str(other), name)
    return text


def retyped(record: Record, field: str, of: object) -> Record:
    fields = tuple((name, of if name == field else was) for name, was in record.fields)
    return dataclasses.replace(record, fields=fields)  # type: ignore[arg-type]


def with_worker(worker: Record) -> bytes:
    inputs = retyped(INPUT, "workers", ListOf(worker))
    records = {**RECORDS, "worker": worker, "input": inputs}
    select = Function((("input", inputs),), Result(DECISION, "string"))
    return component(records=records, functions={**FUNCTIONS, "select-worker": select})


def assert_wrong_type(refusal: PluginRefused, *told: str) -> None:
    """Of one place, by its path, what was found there, and what was expected."""
    assert set(refusal.codes) == {"component_wrong_type"}
    assert any(all(part in reason for part in told) for reason in refusal.reasons)


async def test_a_field_of_another_type(bench: Bench) -> None:
    refusal = await refused_by_types(bench, with_worker(retyped(WORKER, "load", "u64")))
    assert_wrong_type(refusal, "select-worker", "input.workers[].load", "u64", "u32")


async def test_an_option_that_is_none(bench: Bench) -> None:
    refusal = await refused_by_types(bench, with_worker(retyped(WORKER, "prefix-match", "u64")))
    assert_wrong_type(refusal, "input.workers[].prefix-match", "is u64", "option<u64>")


async def test_a_field_that_is_missing(bench: Bench) -> None:
    less = dataclasses.replace(WORKER, fields=WORKER.fields[:-1])
    refusal = await refused_by_types(bench, with_worker(less))
    assert_wrong_type(refusal, "input.workers[]", "{ url, healthy", "worker-info: option<")


async def test_a_function_that_is_missing(bench: Bench) -> None:
    functions = {name: of for name, of in FUNCTIONS.items() if name != "init"}
    refusal = await refused_by_types(bench, component(functions=functions))
    assert_wrong_type(refusal, "no function init", str(FUNCTIONS["init"]))


@pytest.mark.parametrize(
    ("function", "told"),
    [
        (Function((("config", "string"),), None), ("result", "nothing", "result<_, string>")),
        (Function((("config", Option("string")),), RESULT), ("config", "option", "string")),
        (Function((), RESULT), ("0 parameters", "1")),
        (Function((("config", "string"),), Result("u32", "string")), ("ok", "u32", "nothing")),
    ],
)
async def test_a_function_of_another_type(
    bench: Bench, function: Function, told: tuple[str, ...]
) -> None:
    refusal = await refused_by_types(bench, assemble(_init_only(function)))
    assert_wrong_type(refusal, "init", *told)
    assert len(refusal.reasons) == len(FUNCTIONS), "the other two are missing"


def _init_only(function: Function) -> str:
    params = " ".join(
        f'(param "{name}" {"(option string)" if isinstance(of, Option) else of})'
        for name, of in function.params
    )
    result = ""
    if isinstance(function.result, Result):
        result = f"(result (result {function.result.ok or ''} (error string)))"
    flat = "(param i32 i32 i32)" if "option" in params else "(param i32 i32)" if params else ""
    returns = "(result i32)" if result else ""
    body = "(i32.const 0)" if result else ""
    return f"""(component
      (core module $m (memory (export "memory") 1)
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 8))
        (func (export "init") {flat} {returns} {body}))
      (core instance $i (instantiate $m))
      (func $init {params} {result} (canon lift (core func $i "init") (memory $i "memory")
        (realloc (func $i "realloc"))))
      (instance $policy (export "init" (func $init)))
      (export "{INTERFACE}" (instance $policy)))"""
