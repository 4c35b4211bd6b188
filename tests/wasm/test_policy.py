"""A plugin as a policy: what it decides, what is kept, and every way to fail once it is loaded.

Most guests here decide well in an instance's first call, so that they pass the trial at load,
and fail in the second.
"""

import logging
import threading
import weakref
from types import SimpleNamespace

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.json_v1 import Answer
from sgl_router.wasm.contract import MAX_KEPT_ANSWER_BYTES, MAX_KEPT_ANSWERS, JsonContract
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import (
    ANSWER_AT,
    LONG_ID,
    LOOP,
    Bench,
    guest,
    on_long,
    request,
    second_call,
    text_at,
    view,
)

BAD_AT = 4096
REMEMBERS = '{"selected_worker": 0, "state": {"n": 1}}'
DEEP = "(func $deep (result i32) (i32.add (call $deep) (i32.const 1)))"
TABLE = "(table 1 funcref) (type $nothing (func))"
OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)

# (what the second call does, how that failure is called, what its text names)
TRAPS = [
    ("(unreachable)", "trap", "unreachable"),
    ("(drop (i32.load (i32.const 65533)))", "trap", "out of bounds"),
    ("(i32.store (i32.const -4) (i32.const 0))", "trap", "out of bounds"),
    ("(drop (i32.div_u (i32.const 1) (i32.const 0)))", "trap", "divide by zero"),
    ("(drop (i32.div_s (i32.const 0x80000000) (i32.const -1)))", "trap", "overflow"),
    ("(drop (i32.trunc_f32_u (f32.const nan)))", "trap", "integer"),
    ("(call_indirect (type $nothing) (i32.const 0))", "trap", ""),
    ("(call_indirect (type $nothing) (i32.const 9))", "trap", ""),
    ("(drop (call $deep))", "trap", "stack"),
    (LOOP, "timeout", "max_execution_time_ms (20)"),
    ("(loop $l (call $nop) (br $l))", "timeout", "max_execution_time_ms"),
    ("(loop $l (drop (memory.grow (i32.const 0))) (br $l))", "timeout", "max_execution_time_ms"),
    (
        "(loop $l (memory.fill (i32.const 0) (i32.const 0) (i32.const 0)) (br $l))",
        "timeout",
        "max_execution_time_ms",
    ),
    (
        "(loop $l (memory.copy (i32.const 0) (i32.const 1) (i32.const 1000)) (br $l))",
        "timeout",
        "max_execution_time_ms",
    ),
    ("(return (i32.const 0))", "bad_output", "0x0"),
    ("(return (i32.const 65536))", "bad_output", "0x10000"),
    ("(return (i32.const -1))", "bad_output", "0xffffffff"),
    ("(return (i32.const 0x80000000))", "bad_output", "0x80000000"),
    (
        "(memory.fill (i32.const 60000) (i32.const 120) (i32.const 5536))"
        "(return (i32.const 60000))",
        "bad_output",
        "5,536",
    ),
    (
        "(i32.store8 (i32.const 65535) (i32.const 120)) (return (i32.const 65535))",
        "bad_output",
        "NUL",
    ),
    ("(return (i32.const 65535))", "bad_output", "JSON"),
]

# (the second answer, how that failure is called, what its text names)
ANSWERS = [
    ("not JSON", "bad_output", "JSON"),
    (b"\xff\xfe", "bad_output", "JSON"),
    ("[0]", "bad_output", "object"),
    ('{"selected_worker": 3}', "out_of_range", "3"),
    ('{"selected_worker": -1}', "out_of_range", "-1"),
    ('{"selected_worker": 2147483648}', "out_of_range", "2147483648"),
    ('{"selected_worker": 9007199254740992}', "out_of_range", "9007199254740992"),
    ('{"selected_worker": 1e999}', "bad_output", "JSON"),
    ('{"selected_worker": 0.0}', "out_of_range", "0.0"),
    ('{"selected_worker": "0"}', "out_of_range", "'0'"),
    ('{"selected_worker": true}', "out_of_range", "True"),
    ('{"selected_worker": 1}', "unhealthy_pick", "http://10.0.0.1:30001"),
    ('{"selected_worker": 0, "error": "no\\n\\u001b[31m"}', "plugin_error", "no\\n\\x1b[31m"),
    ('{"selected_worker": 1, "state": {"n": 2}}', "unhealthy_pick", ""),
    ('{"selected_worker": 0, "state": [2]}', "bad_output", "state"),
    ('{"error": "' + "x" * 5000 + '"}', "plugin_error", "x" * 1024 + "…"),
]


def failure_of(policy: WasmPolicy) -> DecisionError:
    """The failure of one decision, without the frames that it passed through."""
    try:
        policy.select_worker(view(True, False, True), request())
    except DecisionError as error:
        return error.with_traceback(None)
    raise AssertionError("the decision did not fail")


def decide(policy: WasmPolicy) -> int | None:
    return policy.select_worker(view(True, False, True), request())


async def fails_once(policy: WasmPolicy, kind: str, named: str) -> None:
    """Good, bad, good: what the bad decision leaves behind."""
    assert decide(policy) == 0
    failure = failure_of(policy)
    assert failure.kind == kind
    assert failure.policy == "plugin"
    assert named in failure.detail
    assert failure.detail.isprintable()
    assert policy.failures == {kind: 1}
    assert policy.current._guest.contract.state.values == {"n": 1}
    policy.current._guest.instance = None  # those that only answered badly have still theirs
    assert decide(policy) == 0


@pytest.mark.parametrize(("body", "kind", "named"), TRAPS)
async def test_a_call_that_fails(bench: Bench, body: str, kind: str, named: str) -> None:
    wasm = guest(REMEMBERS, select_worker=second_call(body), extra=f"{DEEP} {TABLE} (func $nop)")
    await fails_once(await bench.policy(wasm, max_execution_time_ms=20), kind, named)


@pytest.mark.parametrize(("answer", "kind", "named"), ANSWERS)
async def test_an_answer_that_fails(
    bench: Bench, answer: str | bytes, kind: str, named: str
) -> None:
    wasm = guest(
        REMEMBERS,
        select_worker=second_call(f"(return (i32.const {BAD_AT}))"),
        extra=text_at(BAD_AT, answer),
    )
    await fails_once(await bench.policy(wasm), kind, named)


@pytest.mark.parametrize(
    ("body", "kind", "named"),
    [
        ("(return (i32.const 0))", "out_of_memory", "max_memory_bytes is 1,048,576"),
        ("(return (i32.const -1))", "bad_output", "0xffffffff"),
        ("(return (i32.const 0x80000000))", "bad_output", "0x80000000"),
        ("(return (i32.const 65536))", "bad_output", "0x10000"),
        ("(return (i32.const 65535))", "bad_output", "0xffff"),
        ("(unreachable)", "trap", "unreachable"),
        (LOOP, "timeout", "max_execution_time_ms (20)"),
    ],
)
async def test_an_allocation_that_fails(bench: Bench, body: str, kind: str, named: str) -> None:
    wasm = guest(
        REMEMBERS,
        select_worker=second_call(""),
        alloc=f"""(if (i32.eq (global.get $calls) (i32.const 1)) (then {body}))
                  (call $bump (local.get $size))""",
    )
    await fails_once(await bench.policy(wasm, max_execution_time_ms=20), kind, named)


@pytest.mark.parametrize("body", [LOOP, "(unreachable)", "(drop (i32.load (i32.const -1)))"])
async def test_a_dealloc_that_fails_loses_no_decision(
    bench: Bench, body: str, no_collector: None
) -> None:
    wasm = guest(REMEMBERS, dealloc=body)
    policy = await bench.policy(wasm, max_execution_time_ms=20)
    for _ in range(2):
        policy.current._guest.start(5_000)
        assert policy.current._guest.instance is not None
        instance = weakref.ref(policy.current._guest.instance)
        assert decide(policy) == 0
        assert policy.current._guest.contract.state.values == {"n": 1}
        assert instance() is None, "thrown away, and freed"
    assert policy.failures.total() == 3, "no request failed, but it is known"


@pytest.mark.parametrize(
    ("limit_ms", "named"),
    [(5_000, "max_execution_time_ms (5,000)"), (100, "inline_budget_ms (100)")],
)
async def test_a_time_out_is_told_by_the_limit_that_was_given(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, limit_ms: int, named: str
) -> None:
    """Also where the start of the instance has left next to nothing of it."""
    policy = await bench.policy(guest(select_worker=on_long(LOOP)))
    used = policy.current._guest
    used.instance = None
    clock = SimpleNamespace(perf_counter=iter((0.0, limit_ms / 1000 - 0.001)).__next__)
    monkeypatch.setattr("sgl_router.wasm.guest.time", clock)
    with pytest.raises(DecisionError) as caught:
        used.decide(view(True), request(id=LONG_ID), limit_ms)
    assert caught.value.kind == "timeout"
    assert named in caught.value.detail


@pytest.mark.parametrize("isolation", ["shared", "per_call"])
async def test_only_the_call_that_starts_an_instance_pays_for_it(
    bench: Bench, isolation: str
) -> None:
    policy = await bench.policy(guest(), isolation=isolation)
    used = policy.current._guest
    kept = used.instance
    assert kept is None or kept.spent_ms == 0, "nobody has waited for it"
    started = used._started(5_000)
    assert (started.spent_ms > 0) is (kept is None)
    assert decide(policy) == 0
    assert started.spent_ms == 0


async def test_a_state_too_large_is_refused_and_the_old_one_kept(bench: Bench) -> None:
    answer = '{"selected_worker": 0, "state": {"a": "' + "x" * 40_000 + '"}}'
    other = answer.replace('"a"', '"b"')
    wasm = guest(
        answer,
        memory='(memory (export "memory") 5)',
        extra=text_at(100_000, other) + "(func $big (global.set $heap (i32.const 150000)))",
        init="(call $big)",
        select_worker=second_call("(return (i32.const 100000))"),
    )
    policy = await bench.policy(wasm)
    assert decide(policy) == 0
    failure = failure_of(policy)
    assert failure.kind == "bad_output"
    assert "65,536" in failure.detail
    assert policy.current._guest.contract.state.values == {"a": "x" * 40_000}


async def test_a_dead_instance_is_freed_by_its_last_reference(
    bench: Bench, no_collector: None
) -> None:
    for name, body in (
        ("traps", "(unreachable)"),
        ("loops", LOOP),
        ("lies", "(return (i32.const 0))"),
    ):
        wasm = guest(select_worker=second_call(body))
        policy = await bench.policy(wasm, name, max_execution_time_ms=20)
        decide(policy)
        live = policy.current._guest.instance
        assert live is not None
        instance, store = weakref.ref(live), weakref.ref(live._store)
        del live
        failure_of(policy)
        assert instance() is None
        assert store() is None


async def test_no_worker_is_an_answer(bench: Bench) -> None:
    policy = await bench.policy(guest('{"selected_worker": null, "state": {"n": 1}}'))
    assert decide(policy) is None
    assert policy.current._guest.contract.state.values == {"n": 1}


async def test_the_same_snapshot_judges_that_was_shown(bench: Bench) -> None:
    policy = await bench.policy(guest('{"selected_worker": 1}'))
    assert policy.select_worker(view(True, True), request()) == 1
    with pytest.raises(DecisionError, match="unhealthy_pick"):
        policy.select_worker(view(True, False), request())
    with pytest.raises(DecisionError, match="out_of_range"):
        policy.select_worker(view(True), request())


async def test_a_deep_recursion_on_another_thread_is_a_trap(bench: Bench) -> None:
    policy = await bench.policy(guest(select_worker=second_call("(drop (call $deep))"), extra=DEEP))
    decide(policy)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(failure_of(policy).kind))
    thread.start()
    thread.join()
    assert found == ["trap"]


async def test_the_trial_leaves_no_trace(bench: Bench) -> None:
    count = second_call(f"(return (i32.const {BAD_AT}))")
    wasm = guest(REMEMBERS, select_worker=count, extra=text_at(BAD_AT, '{"selected_worker": 2}'))
    policy = await bench.policy(wasm)
    assert policy.current._guest.contract.state.values == {}
    assert [decide(policy), decide(policy)] == [0, 2], "the instance had not been called before"


async def test_failures_are_logged_at_powers_of_ten(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    every_second = f"""
      (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (select (i32.const {BAD_AT}) (i32.const {ANSWER_AT})
        (i32.and (global.get $calls) (i32.const 1)))"""
    complaint = text_at(BAD_AT, '{"error": "\\u001b[2J\\nno %s"}')
    policy = await bench.policy(guest(select_worker=every_second, extra=complaint))
    for _ in range(11):
        failure_of(policy)
        assert decide(policy) == 0
    assert policy.failures == {"plugin_error": 11}
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert all("plugin" in text and "\\x1b[2J\\nno %s" in text for text in texts)


def numbered(padding: str = "", state: str = "null") -> bytes:
    """A guest whose every result has a number of its own, of three letters."""
    head = '{"selected_worker": 0, "number": "'
    digits = "".join(
        f"""(i32.store8 (i32.const {BAD_AT + len(head) + place}) (i32.add (i32.const 97)
          (i32.and (i32.shr_u (global.get $calls) (i32.const {4 * place})) (i32.const 15))))"""
        for place in range(3)
    )
    return guest(
        select_worker=f"(global.set $calls (i32.add (global.get $calls) (i32.const 1))) {digits}"
        f"(i32.const {BAD_AT})",
        extra=text_at(BAD_AT, f'{head}aaa", "more": "{padding}", "state": {state}}}'),
    )


def kept_answers(policy: WasmPolicy) -> dict[bytes, Answer]:
    contract = policy.current._guest.contract
    assert isinstance(contract, JsonContract)
    return contract._answers


async def test_only_so_many_results_are_kept_decoded(bench: Bench) -> None:
    policy = await bench.policy(numbered())
    for _ in range(MAX_KEPT_ANSWERS + 10):
        assert decide(policy) == 0
    assert len(kept_answers(policy)) == MAX_KEPT_ANSWERS


async def test_no_long_result_is_kept_decoded_and_none_with_a_state(bench: Bench) -> None:
    for name, wasm in (
        ("long", numbered(padding="x" * MAX_KEPT_ANSWER_BYTES)),
        ("stateful", numbered(state="{}")),
    ):
        policy = await bench.policy(wasm, name)
        assert decide(policy) == 0
        assert not kept_answers(policy)


async def test_each_state_is_merged_though_the_result_is_the_same(bench: Bench) -> None:
    """Two results that take turns: what one sets, the other removes."""
    other = '{"selected_worker": 2, "state": {"n": null}}'
    odd = f"""(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (if (i32.and (global.get $calls) (i32.const 1)) (then (return (i32.const {ANSWER_AT}))))
      (i32.const {BAD_AT})"""
    policy = await bench.policy(guest(REMEMBERS, select_worker=odd, extra=text_at(BAD_AT, other)))
    for _ in range(3):
        assert decide(policy) == 0
        assert policy.current._guest.contract.state.values == {"n": 1}
        assert decide(policy) == 2
        assert policy.current._guest.contract.state.values == {}


def told(body: str) -> str:
    return f'(func (export "on_request_complete") (param $ptr i32) (param $len i32) {body})'


async def test_a_plugin_learns_how_a_request_ended(bench: Bench) -> None:
    digit = ANSWER_AT + len('{"selected_worker": ')
    wasm = guest(extra=told(f"(i32.store8 (i32.const {digit}) (i32.const {ord('2')}))"))
    policy = await bench.policy(wasm)
    assert decide(policy) == 0
    policy.on_request_complete(OUTCOME)
    assert decide(policy) == 2
    assert not policy.failures


def test_what_it_is_told(bench: Bench) -> None:
    keep = "(memory.copy (i32.const 0) (local.get $ptr) (i32.const 10))"
    wasm = guest(extra=told(keep), select_worker="(call $hex (i32.const 0) (i32.const 10))")
    instance = bench.instance(wasm)
    instance.on_request_complete(b'{"worker":7}', now_ms=0)
    assert bytes.fromhex(instance.select_worker(b"{}", 0, 0).decode()) == b'{"worker":'


@pytest.mark.parametrize(("body", "kind"), [("(unreachable)", "trap"), (LOOP, "timeout")])
async def test_a_failure_to_learn_fails_nothing_else(
    bench: Bench, body: str, kind: str, no_collector: None
) -> None:
    policy = await bench.policy(guest(REMEMBERS, extra=told(body)), max_execution_time_ms=5)
    decide(policy)
    assert policy.current._guest.instance is not None
    instance = weakref.ref(policy.current._guest.instance)
    policy.on_request_complete(OUTCOME)
    assert instance() is None
    assert policy.failures == {kind: 1}
    assert decide(policy) == 0
    assert policy.current._guest.contract.state.values == {"n": 1}


async def test_a_plugin_that_does_not_want_outcomes_is_not_called(bench: Bench) -> None:
    policy = await bench.policy(guest())
    policy.on_request_complete(OUTCOME)
    assert not policy.failures
