"""Loading, listing and unloading, by the factory; and memory that grows."""

import asyncio
import logging
import threading
from concurrent.futures import ThreadPoolExecutor

import orjson
import pytest

from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.policies import PolicyFactory, WasmPolicyConfig
from sgl_router.wasm.manifest import SECTION
from tests.wasm.guests import LOOP, ONE_PAGE, Bench, guest, request, view, wasi

GROWS = '(memory (export "memory") 1 10000)'
INITIALIZE = '(func (export "_initialize") {})'
START = "(func $start {}) (start $start)"


async def test_a_plugin_is_one_policy_however_it_is_asked_for(bench: Bench) -> None:
    policy = await bench.policy(guest(), "mine")
    assert bench.factory.list_wasm_plugins() == ["mine"]
    assert bench.factory.create_by_name("mine") is policy
    assert bench.factory.create_by_name("wasm:mine") is policy
    assert bench.factory.create_by_name("yours") is None
    assert policy.name == "mine"
    assert len(policy.current.digest) == 64


async def test_what_was_unloaded_goes_on_for_whoever_holds_it(bench: Bench) -> None:
    policy = await bench.policy(guest(), "mine")
    assert bench.factory.unload_wasm_plugin("mine")
    assert not bench.factory.unload_wasm_plugin("mine")
    assert bench.factory.create_by_name("mine") is None
    assert bench.factory.list_wasm_plugins() == []
    assert policy.select_worker(view(True), request()) == 0


async def test_a_name_is_free_again_after_unloading(bench: Bench) -> None:
    first = await bench.policy(guest(), "mine")
    bench.factory.unload_wasm_plugin("mine")
    assert await bench.policy(guest(), "mine") is not first


async def test_a_name_is_loaded_once(bench: Bench) -> None:
    policy = await bench.policy(guest(), "mine")
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(guest('{"selected_worker": 1}'), "mine")
    assert caught.value.plugin == "mine"
    assert bench.factory.create_by_name("mine") is policy
    assert bench.factory.list_wasm_plugins() == ["mine"]


async def test_of_two_loads_of_one_name_at_once_one_is_refused(bench: Bench) -> None:
    config = bench.config(guest(), "mine")
    results = await asyncio.gather(
        *(bench.factory.load_wasm_plugin(config) for _ in range(5)), return_exceptions=True
    )
    assert results.count(None) == 1
    assert sum(isinstance(result, PluginRefused) for result in results) == 4
    assert bench.factory.list_wasm_plugins() == ["mine"]


async def test_different_names_are_loaded_at_once(bench: Bench) -> None:
    configs = [bench.config(guest(), f"p{number}") for number in range(8)]
    await asyncio.gather(*map(bench.factory.load_wasm_plugin, configs))
    assert sorted(bench.factory.list_wasm_plugins()) == [f"p{number}" for number in range(8)]


@pytest.mark.parametrize(("version", "shown"), [("1.2\n", r"(1.2\n, "), (None, "(/")])
async def test_the_log_has_a_plugins_version(
    bench: Bench, caplog: pytest.LogCaptureFixture, version: str | None, shown: str
) -> None:
    caplog.set_level(logging.INFO, "sgl_router.wasm")
    await bench.policy(guest(sections={SECTION: orjson.dumps({"version": version})}), "mine")
    assert "plugin mine loaded: version " in caplog.text
    assert shown in caplog.text


async def test_a_load_that_is_given_up_before_it_begins_keeps_no_clock(bench: Bench) -> None:
    factory = PolicyFactory()
    before = _clocks()
    free = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(free.wait)
        loading = asyncio.create_task(factory.load_wasm_plugin(bench.config(guest(), "mine")))
        await asyncio.sleep(0)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        factory.close()
        free.set()
    assert _clocks() == before


async def test_a_load_that_begins_after_the_close_is_refused(bench: Bench) -> None:
    factory = PolicyFactory()
    before = _clocks()
    free = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        asyncio.get_running_loop().set_default_executor(threads)
        threads.submit(free.wait)
        loading = asyncio.create_task(factory.load_wasm_plugin(bench.config(guest(), "mine")))
        await asyncio.sleep(0)
        factory.close()
        free.set()
        with pytest.raises(PluginRefused, match="stopped"):
            await loading
    assert _clocks() == before
    assert factory.list_wasm_plugins() == []


def _clocks() -> int:
    return sum(thread.name == "wasm-clock" for thread in threading.enumerate())


@pytest.mark.parametrize("name", [["mine"], None, 7, "", "a b"])
async def test_a_name_of_any_type_is_refused_in_words(bench: Bench, name: object) -> None:
    path = bench.config(guest()).module_path
    with pytest.raises(PluginRefused) as caught:
        await bench.factory.load_wasm_plugin(WasmPolicyConfig(path, name))  # type: ignore[arg-type]
    assert caught.value.plugin == str(name)
    assert bench.factory.list_wasm_plugins() == []


REFUSED = [
    ({"init": LOOP}, "timeout", "max_execution_time_ms (20)"),
    ({"extra": INITIALIZE.format(LOOP)}, "timeout", "max_execution_time_ms (20)"),
    ({"extra": START.format(LOOP)}, "timeout", "max_execution_time_ms (20)"),
    ({"alloc": LOOP}, "timeout", "max_execution_time_ms (20)"),
    ({"select_worker": LOOP}, "timeout", "max_execution_time_ms (20)"),
    ({"init": "(unreachable)"}, "trap", "unreachable"),
    ({"extra": INITIALIZE.format("(unreachable)")}, "trap", "unreachable"),
    ({"extra": START.format("(unreachable)")}, "trap", "unreachable"),
    ({"select_worker": "(unreachable)"}, "trap", "unreachable"),
    ({"alloc": "(i32.const 0)"}, "out_of_memory", "max_memory_bytes is 1,048,576"),
    ({"select_worker": "(i32.const 0)"}, "bad_output", "0x0"),
    ({"answer": '{"selected_worker": 2}'}, "out_of_range", "2"),
    (
        {"extra": START.format("(memory.fill (i32.const 65535) (i32.const 0) (i32.const 2))")},
        "trap",
        "out of bounds",
    ),
]


@pytest.mark.parametrize(("parts", "kind", "named"), REFUSED)
async def test_a_plugin_that_fails_its_trial_is_not_there(
    bench: Bench, parts: dict[str, str], kind: str, named: str
) -> None:
    with pytest.raises(PluginRefused) as caught:
        await bench.policy(guest(**parts), "mine", max_execution_time_ms=20)  # type: ignore[arg-type]
    (reason,) = caught.value.reasons
    assert caught.value.plugin == "mine"
    assert kind in reason
    assert named in reason
    assert bench.factory.list_wasm_plugins() == []
    assert bench.factory.create_by_name("mine") is None
    assert await bench.policy(guest(), "mine"), "the name is free"


async def test_a_module_that_does_not_validate(bench: Bench) -> None:
    wasm = guest(init="(drop (i32.const 1))").replace(b"\x41\x01\x1a", b"\x41\x01\x01")
    with pytest.raises(PluginRefused, match="not valid"):
        await bench.policy(wasm)
    assert bench.factory.list_wasm_plugins() == []


async def test_a_granted_import_of_the_wrong_type(bench: Bench) -> None:
    wasm = guest(imports=wasi("random_get", "i64"))
    with pytest.raises(PluginRefused, match="random_get"):
        await bench.policy(wasm, allowed_syscalls=["wasi:random"])


async def test_initialize_comes_before_init(bench: Bench) -> None:
    store = "(i32.store8 (i32.const 0) (i32.add (i32.load8_u (i32.const {})) (i32.const 1)))"
    trap_unless_first = "(if (i32.ne (i32.load8_u (i32.const 0)) (i32.const 1)) (then unreachable))"
    wasm = guest(init=trap_unless_first, extra=INITIALIZE.format(store.format(0)))
    await bench.policy(wasm)


async def test_a_plugin_that_reports_an_error_in_its_trial_is_loaded(bench: Bench) -> None:
    await bench.policy(guest('{"error": "no weights for these workers"}'), "mine")
    assert bench.factory.list_wasm_plugins() == ["mine"]


def test_memory_stops_growing_at_its_limit(bench: Bench) -> None:
    bomb = """
      (loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
      (i32.store (i32.const 0) (memory.size))
      (call $hex (i32.const 0) (i32.const 4))"""
    for limit, pages in ((1024 * 1024, 16), (200_000, 3), (65_536, 1)):
        instance = bench.instance(guest(select_worker=bomb, memory=GROWS), max_memory_bytes=limit)
        result = bytes.fromhex(instance.select_worker(b"{}", 0, 0).decode())
        assert int.from_bytes(result, "little") == pages
        assert not instance.poisoned


def test_memory_and_table_share_the_limit(bench: Bench) -> None:
    grow = """
      (i32.store (i32.const 0) (memory.grow (i32.const 1)))
      (call $hex (i32.const 0) (i32.const 4))"""
    for elements, result in ((0, b"01000000"), (1, b"ffffffff")):
        wasm = guest(select_worker=grow, memory=GROWS, extra=f"(table {elements} funcref)")
        instance = bench.instance(wasm, max_memory_bytes=131_072)
        assert instance.select_worker(b"{}", 0, 0) == result


def test_a_table_does_not_grow(bench: Bench) -> None:
    grow = """
      (i32.store (i32.const 0) (table.grow $t (ref.null func) (i32.const 1)))
      (call $hex (i32.const 0) (i32.const 4))"""
    instance = bench.instance(guest(select_worker=grow, extra="(table $t 1 funcref)"))
    assert instance.select_worker(b"{}", 0, 0) == b"ffffffff"


def test_memory_that_grows_in_every_alloc_and_decision(bench: Bench) -> None:
    page = "(i32.mul (memory.grow (i32.const 1)) (i32.const 65536))"
    answer = f"""
      (local $to i32) (local.set $to {page})
      (memory.copy (local.get $to) (local.get $ptr) (local.get $len))
      (local.get $to)"""
    wasm = guest(alloc=page, select_worker=answer, memory=GROWS)
    instance = bench.instance(wasm, max_memory_bytes=100 * 65_536)
    for number in range(40):
        payload = b"%d" % number * 100
        assert instance.select_worker(payload, 0, 0) == payload


@pytest.mark.parametrize(("size", "fits"), [(65_535, True), (65_536, True), (65_537, False)])
def test_a_result_has_a_size(bench: Bench, size: int, fits: bool) -> None:
    wasm = guest(
        memory='(memory (export "memory") 4)',
        select_worker=f"""
          (memory.fill (i32.const 100000) (i32.const 120) (i32.const {size}))
          (i32.const 100000)""",
    )
    instance = bench.instance(wasm)
    if fits:
        assert instance.select_worker(b"{}", 0, 0) == b"x" * size
    else:
        with pytest.raises(DecisionError, match="bad_output"):
            instance.select_worker(b"{}", 0, 0)
        assert instance.poisoned


def test_the_hosts_own_copy_decides(bench: Bench) -> None:
    scribble = "(memory.fill (local.get $ptr) (i32.const 120) (local.get $size))"
    instance = bench.instance(guest("first", dealloc=scribble, memory=ONE_PAGE))
    assert instance.select_worker(b"{}", 0, 0) == b"first"


def test_a_result_may_overlap_the_input(bench: Bench) -> None:
    instance = bench.instance(guest(select_worker="(local.get $ptr)"))
    assert instance.select_worker(b"over\0lap", 0, 0) == b"over"


@pytest.mark.parametrize(("end", "fits"), [(65_536, True), (65_537, False)])
def test_an_allocation_may_reach_exactly_the_end_of_memory(
    bench: Bench, end: int, fits: bool
) -> None:
    instance = bench.instance(guest("fine", alloc=f"(i32.sub (i32.const {end}) (local.get $size))"))
    if fits:
        assert instance.select_worker(b"{}" * 50, 0, 0) == b"fine"
    else:
        with pytest.raises(DecisionError, match="0x10000"):
            instance.select_worker(b"{}" * 50, 0, 0)
