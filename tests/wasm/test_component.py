"""Components as plugins: what they are given, and what becomes of what they return.

The components are WebAssembly text. `echo` returns as its state what it has been given: the texts
of its input are read back by where the canonical ABI puts them.
"""

import gc
import json
import tracemalloc
from typing import Any

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.wasm.abi.component_v1 import MAX_TEXT_BYTES, ComponentEncoder
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, PluginState
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.component_guests import REFUSED_AT, RESULT_AT, TEXT_AT, answer, component
from tests.wasm.guests import Bench, guest, request, settled, text_at, view

OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.25, 913.5, 64, None)
TOLD = {"sgl-router.manifest": b'{"needs": ["request_text", "outcomes"]}'}
COUNTS = "(global $count (mut i32) (i32.const 0))"
WORKERS = view(True, True, False)


def given_back(offset: int) -> bytes:
    """A component that reports as its error the text whose address stands there in its input."""
    select = f"""
      (i32.store8 (i32.const {RESULT_AT}) (i32.const 1))
      (i32.store offset=4 (i32.const {RESULT_AT}) (i32.load offset={offset} (local.get $input)))
      (i32.store offset=8 (i32.const {RESULT_AT}) (i32.load offset={offset + 4} (local.get $input)))
      (i32.const {RESULT_AT})"""
    return component(select=select)


def counted(number: str, **parts: object) -> bytes:
    """A component that chooses the worker whose index is this number."""
    select = f"""(i32.store offset=8 (i32.const {RESULT_AT}) {number}) (i32.const {RESULT_AT})"""
    return component(select=select, **parts)  # type: ignore[arg-type]


async def inline(bench: Bench, wasm: bytes, **settings: Any) -> WasmPolicy:
    return await bench.policy(wasm, lane="inline", **settings)


def failure(policy: WasmPolicy, given: RequestView) -> DecisionError:
    with pytest.raises(DecisionError) as caught:
        policy.select_worker(WORKERS, given)
    return caught.value


# ---- what it returns


@pytest.mark.parametrize(("index", "choice"), [(0, 0), (1, 1), (None, None)])
async def test_its_choice(bench: Bench, index: int | None, choice: int | None) -> None:
    policy = await inline(bench, component(answer(index)))
    assert policy.select_worker(WORKERS, request()) == choice


@pytest.mark.parametrize(
    ("index", "kind"), [(2, "unhealthy_pick"), (3, "out_of_range"), (2**32 - 1, "out_of_range")]
)
async def test_a_choice_that_is_none(bench: Bench, index: int, kind: str) -> None:
    turned = "(if (i32.gt_u (i32.load offset=4 (local.get $input)) (i32.const 2)) (then {}))"
    late = f"(i32.store offset=8 (i32.const {RESULT_AT}) (i32.const {index}))"
    wasm = component(answer(0), select=f"{turned.format(late)} (i32.const {RESULT_AT})")
    policy = await inline(bench, wasm)
    assert failure(policy, request()).kind == kind


async def test_its_error_is_told(bench: Bench) -> None:
    text = "it cannot say: ü\n"
    policy = await inline(bench, component(answer(error=(TEXT_AT, len(text.encode()))), text=text))
    failed = failure(policy, request())
    assert failed.kind == "plugin_error"
    assert failed.detail == r"it cannot say: \xfc\n"
    assert policy.current.self_test.error == failed.detail


async def test_an_error_keeps_the_instance(bench: Bench) -> None:
    policy = await inline(bench, component(answer(error=(TEXT_AT, 1)), text="x"))
    instance = policy.current._guest.instance
    failure(policy, request())
    assert policy.current._guest.instance is instance


async def test_its_state_is_merged_and_given_back(bench: Bench) -> None:
    """The second decision reports as its error the state that it was given."""
    patch = b'{"a": {"b": 1}, "gone": null}'
    # Of the input: list, option<string>, request (72 bytes), the state.
    at = _offset_of_state()
    select = f"""
      (if (i32.gt_u (i32.load offset={at + 4} (local.get $input)) (i32.const 2)) (then
        (i32.store8 (i32.const 2048) (i32.const 1))
        (i32.store (i32.const 2052) (i32.load offset={at} (local.get $input)))
        (i32.store (i32.const 2056) (i32.load offset={at + 4} (local.get $input)))
        (return (i32.const 2048))))
      (i32.const {RESULT_AT})"""
    wasm = component(answer(1, (TEXT_AT, len(patch))), text=patch, select=select)
    policy = await inline(bench, wasm)
    assert policy.select_worker(WORKERS, request()) == 1
    assert policy.current._guest.contract.state.values == {"a": {"b": 1}}
    assert json.loads(failure(policy, request()).detail) == {"a": {"b": 1}}


def _offset_of_state() -> int:
    """`request` begins at 24: id 0, path 8, model 16 (12), stream 28, session 32 (12), attempt 44,
    text-bytes 48, prompt-tokens 56 (16): 72 bytes."""
    return 24 + 72


@pytest.mark.parametrize(
    ("state", "named"),
    [
        (b"", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"a": NaN}', "not JSON"),
        (b'{"a": 1} x', "not JSON"),
        (b'{"a": "' + b"x" * (MAX_TEXT_BYTES - 10) + b'"}', None),
        (b'{"a": "' + b"x" * (MAX_TEXT_BYTES - 8) + b'"}', "65,536"),
        (b'{"a": "' + b"x" * 300_000 + b'"}', "65,536"),
    ],
)
async def test_a_state_that_is_none(bench: Bench, state: bytes, named: str | None) -> None:
    memory = '(memory (export "memory") 8)'
    wasm = component(answer(0, (65_536, len(state))), memory=memory, extra=text_at(65_536, state))
    if named is None:
        policy = await inline(bench, wasm)
        assert policy.select_worker(WORKERS, request()) == 0
        return
    with pytest.raises(PluginRefused, match=named) as caught:
        await inline(bench, wasm)
    assert caught.value.codes == ("trial_bad_output",)


async def test_a_state_that_would_be_too_large_leaves_it_as_it_was(bench: Bench) -> None:
    patch = b'{"a": "' + b"x" * 40_000 + b'"}'
    memory = '(memory (export "memory") 4)'
    wasm = component(answer(0, (65_536, len(patch))), memory=memory, extra=text_at(65_536, patch))
    policy = await inline(bench, wasm)
    contract = policy.current._guest.contract
    contract.state = before = PluginState({"b": "y" * 40_000}, b'{"b":"' + b"y" * 40_000 + b'"}')
    assert failure(policy, request()).kind == "bad_output"
    assert contract.state is before


# ---- what it is given


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        (12, "hello wörld"),
        (24, "req-1"),
        (32, "/v1/chat/completions"),
        (44, "llama"),
        (60, "u42"),
        (_offset_of_state(), "{}"),
    ],
    ids=["request-text", "id", "path", "model", "session", "state"],
)
async def test_the_texts_of_its_input(bench: Bench, offset: int, expected: str) -> None:
    policy = await inline(bench, given_back(offset))
    body = {"prompt": "hello wörld", "model": "llama", "user": "u42"}
    said = failure(policy, request(json.dumps(body).encode())).detail
    assert said == expected.encode("unicode_escape").decode()


async def test_a_text_is_cut_at_a_character(bench: Bench) -> None:
    policy = await inline(bench, given_back(12), max_request_text_bytes=5)
    assert failure(policy, request('{"prompt": "aaaaüb"}'.encode())).detail == "aaaa"


async def test_lone_surrogates_become_question_marks(bench: Bench) -> None:
    policy = await inline(bench, given_back(44))
    given = request(b"{}")
    given._json = {"model": "a\ud800b"}
    assert failure(policy, given).detail == "a?b"


async def test_a_field_is_cut(bench: Bench) -> None:
    policy = await inline(bench, given_back(44))
    given = request(json.dumps({"model": "m" * 5000}).encode())
    assert failure(policy, given).detail == "m" * 1024


async def test_the_numbers_of_the_last_decision_are_not_those_of_the_next(bench: Bench) -> None:
    """It chooses by the load of the first worker, at 12 of a worker's record."""
    load = "(i32.load offset=12 (i32.load (local.get $input)))"
    policy = await inline(bench, counted(load))
    workers = view(True, True, True)
    for load_of_first in (0, 2, 1, 0):
        workers[0].load = load_of_first
        assert policy.select_worker(workers, request()) == load_of_first


async def test_views_of_several_sizes_in_turn(bench: Bench) -> None:
    """It chooses the last worker, by their number."""
    last = "(i32.sub (i32.load offset=4 (local.get $input)) (i32.const 1))"
    policy = await inline(bench, counted(last))
    views = [view(*[True] * count) for count in (1, 7, 300)]
    for workers in (*views, *reversed(views), *views):
        assert policy.select_worker(workers, request()) == len(workers) - 1


async def test_no_worker_at_all(bench: Bench) -> None:
    wasm = component(answer(None))
    policy = await inline(bench, wasm)
    assert policy.select_worker(view(), request()) is None


# ---- its configuration


async def test_a_configuration_that_is_refused(bench: Bench) -> None:
    text = "weights must not be empty"
    wasm = component(init=f"(i32.const {REFUSED_AT})", text=text)
    for isolation in ("shared", "per_call"):
        with pytest.raises(PluginRefused) as caught:
            await bench.policy(wasm, isolation=isolation)
        assert caught.value.codes == ("trial_plugin_error",)
        assert text in caught.value.reasons[0]


async def test_the_configuration_is_given_to_init(bench: Bench) -> None:
    """It refuses by saying what it was given."""
    init = f"""(i32.store (i32.const {REFUSED_AT + 4}) (local.get $at))
      (i32.store (i32.const {REFUSED_AT + 8}) (local.get $size)) (i32.const {REFUSED_AT})"""
    with pytest.raises(PluginRefused, match=r'\{"a":\[1,2\]\}'):
        await bench.policy(component(init=init), config={"a": [1, 2]})


# ---- its instances


async def test_an_instance_for_each_decision(bench: Bench) -> None:
    """It chooses by how often it has been called."""
    count = """(global.get $count)
      (global.set $count (i32.xor (global.get $count) (i32.const 1)))"""
    for isolation, choices in (("shared", [0, 1, 0]), ("per_call", [0, 0, 0])):
        wasm = counted(count.replace("\n", " "), extra=COUNTS)
        policy = await inline(bench, wasm, name=isolation, isolation=isolation)
        assert [policy.select_worker(WORKERS, request()) for _ in choices] == choices


async def test_after_a_trap_a_new_instance_decides(bench: Bench) -> None:
    turned = "(if (i32.load8_u offset=8 (local.get $input)) (then (unreachable)))"
    wasm = component(select=f"{turned} (i32.const {RESULT_AT})")
    policy = await inline(bench, wasm)
    assert policy.select_worker(WORKERS, request()) == 0
    assert failure(policy, request(b'{"prompt": "x"}')).kind == "trap"
    assert policy.select_worker(WORKERS, request()) == 0
    assert policy.current._guest.instances == 3


STUB = """(func unreachable)
  (func (call 0))
  (func $wall_clock_now (call 1))
  (func $library (call $wall_clock_now))"""
"""A function of the system as a build without WASI leaves it, and what calls it."""


async def test_a_call_of_the_system_is_told(bench: Bench) -> None:
    """Its own functions trap as they are."""
    turned = "(if (i32.load8_u offset=8 (local.get $input)) (then (call %s)))"
    for called, told in (("$library", True), ("$own", False)):
        wasm = component(
            extra=f"{STUB} (func $own (call $mine)) (func $mine unreachable)",
            select=f"{turned % called} (i32.const {RESULT_AT})",
        )
        policy = await inline(bench, wasm, name=called[1:])
        error = failure(policy, request(b'{"prompt": "x"}'))
        assert error.kind == "trap"
        assert ("wall_clock_now" in error.detail and "now-ms" in error.detail) is told


async def test_a_swap_between_a_component_and_a_module_keeps_the_state(bench: Bench) -> None:
    text = b'{"n": 1}'
    of_component = component(answer(0, (TEXT_AT, len(text))), text=text)
    of_module = guest('{"selected_worker": 1, "state": {"m": 2}}')
    policy = await inline(bench, of_component)
    for wasm, index in ((of_component, 0), (of_module, 1), (of_component, 0)):
        await bench.factory.plugins.put(bench.config(wasm, lane="inline"))
        assert policy.select_worker(WORKERS, request()) == index
    assert policy.current._guest.contract.state.values == {"n": 1, "m": 2}


# ---- outcomes


async def test_it_is_told_of_outcomes(bench: Bench) -> None:
    """It chooses by the status of the last one, 200 or none."""
    report = "(global.set $count (i32.eq (local.get 4) (i32.const 200)))"
    wasm = counted("(global.get $count)", extra=COUNTS, report=report, sections=TOLD)
    policy = await inline(bench, wasm)
    assert policy.select_worker(WORKERS, request()) == 0
    policy.on_request_complete(OUTCOME)
    assert policy.select_worker(WORKERS, request()) == 1
    policy.on_request_complete(Outcome("http://x:1", False, None, None, 1.0, 0, "it left"))
    assert policy.select_worker(WORKERS, request()) == 0
    assert not policy.failures


async def test_it_is_not_told_where_it_does_not_ask(bench: Bench) -> None:
    policy = await inline(bench, component(report="(unreachable)"))
    policy.on_request_complete(OUTCOME)
    assert not policy.failures


# ---- what it costs


@pytest.mark.usefixtures("no_collector")
async def test_nothing_of_a_decision_is_kept(bench: Bench) -> None:
    text = b'{"n": 1}'
    wasm = component(answer(0, (TEXT_AT, len(text))), text=text, sections=TOLD)
    policy = await inline(bench, wasm)
    registry = WorkerRegistry()
    for port in range(1, 20):
        registry.add(Worker(f"http://10.0.0.1:{port}", Health.UP))
    given = request(b'{"prompt": "hello", "model": "m"}')

    def decide(times: int) -> None:
        for i in range(times):
            if i % 10 == 0:  # a retry, whose view is made for it alone
                given.excluded = frozenset({registry.view()[5]})
                policy.select_worker(registry.view(given.excluded), given)
                given.excluded = frozenset()
            policy.select_worker(registry.view(), given)
            policy.on_request_complete(OUTCOME)

    decide(50)
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        decide(200)
        garbage = gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000
    if not bench.runtime.calls.public:  # wasmtime's classes make cycles
        assert garbage == 0


def test_a_frame_is_kept_for_a_view_that_is_seen_again() -> None:
    encoder = ComponentEncoder({"request_text"}, 100)
    first = encoder.encode(WORKERS, request(), EMPTY_STATE)
    assert encoder.encode(WORKERS, request(), EMPTY_STATE).frame is first.frame
    retried = request()
    retried.excluded = frozenset({WORKERS[0]})
    other = view(True)
    frames = [encoder.encode(other, retried, EMPTY_STATE).frame for _ in range(2)]
    assert frames[0] is not frames[1]


def test_an_input_does_not_change_with_the_workers() -> None:
    encoder = ComponentEncoder(
        {"pending_tokens", "prefix_match", "engine_metrics", "worker_info"}, 100
    )
    workers = view(True, True)
    given = encoder.encode(workers, request(), EMPTY_STATE)
    workers[0].load = workers[1].pending_tokens = 7
    workers[0].metrics = EngineMetrics(1, 2, 0.5, 0)
    workers[1].ttft_ms = 5.0
    assert given.loads == [0, 0]
    assert given.pending_tokens == [0, 0]
    assert given.metrics == [None, None]
    assert given.ttft_ms == [None, None]


async def test_it_decides_in_its_lane_unless_told_otherwise(bench: Bench) -> None:
    policy = await bench.policy(component(answer(1)))
    assert await settled(policy.choose(WORKERS, request())) == 1
    assert policy.current.offloaded
