"""What a placement depends on and what it leaves behind: roles, models, hints, tokens, breakers."""

import orjson
import pytest

from sgl_router.core.breaker import BreakerSettings
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Circuit, Health, Worker
from sgl_router.errors import RequestError
from tests.core.dispatching import DONE, Bench, Scripted, failing

TOKENS = frozenset({"pending_tokens"})
PREFIXES = frozenset({"prefix_match"})


def body(text: str, model: str | None = None) -> bytes:
    return orjson.dumps({"prompt": text} | ({"model": model} if model else {}))


# ---- roles and models


def test_each_role_has_its_policy_and_those_without_have_the_regular_one() -> None:
    regular, prefill = Scripted("regular", 0), Scripted("prefill", 0)
    bench = Bench(regular)
    bench.registry.add(Worker("http://prefill", Health.UP, role="prefill"))
    bench.registry.add(Worker("http://decode", Health.UP, role="decode"))
    bench.dispatcher.use(prefill, Scripted("fallback"), "prefill")
    request = RequestView("id", "/v1/completions")
    placed = [
        (decision.worker.url, decision.policy)
        for role in ("regular", "prefill", "decode")
        for decision in [bench.dispatcher.dispatch(request, role)]
    ]
    assert placed == [
        ("http://engine-0", regular),
        ("http://prefill", prefill),
        ("http://decode", regular),
    ]


def test_the_fallback_is_the_one_of_the_role() -> None:
    bench = Bench(Scripted("regular"), Scripted("regular fallback"))
    bench.registry.add(Worker("http://prefill", Health.UP, role="prefill"))
    fallback = Scripted("prefill fallback")
    bench.dispatcher.use(failing(), fallback, "prefill")
    assert bench.dispatcher.dispatch(RequestView("id", "/"), "prefill").policy is fallback


def with_models() -> Bench:
    bench = Bench(Scripted("p", 0), workers=0)
    bench.registry.add(Worker("http://llama", Health.UP, model_id="llama"))
    bench.registry.add(Worker("http://qwen", Health.UP, model_id="qwen"))
    return bench


def test_a_request_goes_to_a_worker_that_serves_its_model() -> None:
    bench = with_models()
    assert bench.dispatch(body("text", "qwen")).worker.url == "http://qwen"
    assert bench.dispatch(body("text", "llama")).worker.url == "http://llama"


def test_a_model_that_nobody_serves_is_a_404_that_names_it_in_short() -> None:
    bench = with_models()
    with pytest.raises(RequestError) as refused:
        bench.dispatch(body("text", "gpt" * 10_000))
    assert (refused.value.status, refused.value.code) == (404, "model_not_found")
    assert "gpt" in str(refused.value)
    assert len(str(refused.value)) < 400


def test_a_model_whose_workers_are_down_is_a_503() -> None:
    bench = with_models()
    for worker in bench.registry:
        bench.registry.set_health(worker, Health.DOWN)
    with pytest.raises(RequestError) as refused:
        bench.dispatch(body("text", "qwen"))
    assert refused.value.status == 503


def test_without_declared_models_the_model_makes_no_difference() -> None:
    assert Bench(Scripted("p", 1)).dispatch(body("text", "any")).worker.url == "http://engine-1"


@pytest.mark.parametrize(
    ("needs", "reads_body"),
    [
        (frozenset(), False),
        (frozenset({"engine_metrics"}), False),
        (frozenset({"body"}), True),
        (TOKENS, True),
        (PREFIXES, True),
    ],
)
def test_who_needs_the_body(needs: frozenset[str], reads_body: bool) -> None:
    assert Bench(Scripted("p", needs=needs)).dispatcher.reads_body is reads_body


def test_the_needs_are_those_of_all_roles_and_models_need_the_body() -> None:
    bench = Bench(Scripted("p"))
    bench.dispatcher.use(Scripted("q", needs=frozenset({"body"})), Scripted("f"), "decode")
    reads = [bench.dispatcher.reads_body]
    bench.dispatcher.use(Scripted("q"), Scripted("f"), "decode")
    reads.append(bench.dispatcher.reads_body)
    bench.registry.add(Worker("http://llama", model_id="llama"))
    reads.append(bench.dispatcher.reads_body)
    assert reads == [True, False, True]


# ---- the client's hint


def test_the_worker_that_the_client_asks_for_is_taken_and_nobody_is_asked() -> None:
    policy = Scripted("p", 0)
    bench = Bench(policy, workers=3)
    decision = bench.dispatch(target=2)
    assert (decision.worker, decision.policy) == (bench.workers[2], policy)
    assert policy.asked == []
    assert bench.loads() == [0, 0, 1]


@pytest.mark.parametrize("target", [1, 3, -1, 2**63, None])
def test_a_hint_at_a_worker_that_cannot_be_taken_is_none(target: int | None) -> None:
    bench = Bench(Scripted("p", 0), workers=3)
    bench.registry.set_health(bench.workers[1], Health.DOWN)
    assert bench.dispatch(target=target).worker is bench.workers[0]


def test_a_hint_at_a_worker_already_tried_is_none() -> None:
    bench = Bench(Scripted("p", 1))
    request = RequestView("id", "/")
    request.target, request.excluded = 0, frozenset(bench.workers[:1])
    assert bench.dispatcher.dispatch(request).worker is bench.workers[1]


def test_whether_anybody_else_could_take_a_request() -> None:
    bench = Bench(Scripted("p"))
    request = RequestView("id", "/")
    assert bench.dispatcher.can_dispatch(request, frozenset(bench.workers[:1]))
    assert not bench.dispatcher.can_dispatch(request, frozenset(bench.workers))
    assert not bench.dispatcher.can_dispatch(request, frozenset(), "decode")


# ---- draining


def test_a_draining_worker_gets_nothing_and_goes_with_its_last_request() -> None:
    bench = Bench(Scripted("p", 0))
    first, second = bench.dispatch(), bench.dispatch()
    bench.registry.set_health(bench.workers[0], Health.DRAINING)
    assert bench.dispatch(target=1).worker is bench.workers[1]
    bench.complete(first)
    assert bench.workers[0] in bench.registry
    bench.complete(second)
    assert list(bench.registry) == bench.workers[1:]


def test_a_worker_that_is_not_draining_stays() -> None:
    bench = Bench(Scripted("p", 0))
    bench.complete(bench.dispatch())
    assert list(bench.registry) == bench.workers


# ---- tokens


def test_prompt_tokens_are_pending_until_the_first_byte() -> None:
    bench = Bench(Scripted("p", 0, TOKENS))
    worker = bench.workers[0]
    first, second = bench.dispatch(body("x" * 400)), bench.dispatch(body("x" * 80))
    assert worker.pending_tokens == worker.unreported_tokens == 120
    bench.dispatcher.first_byte(first, None)
    assert (worker.pending_tokens, worker.unreported_tokens) == (20, 120)
    bench.complete(first)
    assert worker.pending_tokens == 20
    bench.complete(second)  # it never answered
    assert (worker.pending_tokens, worker.unreported_tokens) == (0, 120)


def test_tokens_are_counted_only_for_who_needs_them() -> None:
    bench = Bench(Scripted("p", 0))
    decision = bench.dispatch(body("x" * 400))
    assert bench.workers[0].pending_tokens == bench.workers[0].unreported_tokens == 0
    bench.dispatcher.use(Scripted("q", 0, TOKENS), Scripted("f"))
    bench.complete(decision)
    assert bench.workers[0].pending_tokens == 0


def test_tokens_are_counted_where_the_fallback_decides_and_where_the_client_does() -> None:
    policy = failing()
    policy.needs = TOKENS
    bench = Bench(policy, Scripted("fallback", 1))
    bench.dispatch(body("x" * 400))
    bench.dispatch(body("x" * 40), target=0)
    assert [worker.pending_tokens for worker in bench.workers] == [10, 100]


def test_the_time_to_first_byte_is_averaged() -> None:
    bench = Bench(Scripted("p", 0))
    worker = bench.workers[0]
    times: list[float | None] = [100.0, 200.0, None, 200.0]
    averages = []
    for ttft in times:
        decision = bench.dispatch()
        bench.dispatcher.complete(decision, Outcome(worker.url, True, 200, ttft, 500.0, 1, None))
        averages.append(worker.ttft_ms)
    assert averages == [100.0, 110.0, 110.0, 119.0]


# ---- prefixes


class SeesPrefix(Policy):
    """Takes the first eligible worker, and remembers who held how much of the text."""

    name = "sees_prefix"
    needs = PREFIXES

    def __init__(self) -> None:
        self.seen: list[tuple[int, list[int]]] = []

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        match = request.prefix
        assert match is not None, "it is needed"
        assert set(match.holders) == {w for w in workers if 0 < match.of(w) == match.characters}
        self.seen.append((match.characters, [match.of(worker) for worker in workers]))
        return workers.eligible[0]


def test_who_was_sent_a_text_is_known_at_the_next() -> None:
    policy = SeesPrefix()
    bench = Bench(policy)
    bench.dispatch(body("system prompt, one"))
    bench.dispatch(body("system prompt, two"), target=1)
    bench.dispatch(body("system prompt, two and more"))
    bench.dispatch(body("system prompt, two and more"))
    assert policy.seen == [(0, [0, 0]), (18, [15, 18]), (27, [27, 18])]


def test_what_an_engine_held_before_it_dropped_its_cache_is_forgotten() -> None:
    policy = SeesPrefix()
    bench = Bench(policy)
    bench.dispatch(body("text"))
    bench.dispatch(body("text"), target=1)
    bench.dispatcher.forget_prefixes(bench.workers[0])
    bench.dispatch(body("text"))
    bench.dispatch(body("text"))
    assert policy.seen == [(0, [0, 0]), (4, [0, 4]), (4, [4, 4])]


def test_what_a_worker_held_that_has_gone_is_forgotten() -> None:
    policy = SeesPrefix()
    bench = Bench(policy)
    bench.dispatch(body("text"))
    bench.dispatch(body("text"), target=1)
    bench.registry.remove(bench.workers[1])
    bench.dispatch(body("text"))
    assert bench.dispatcher._prefixes.match(("regular", None), "text").holders == {bench.workers[0]}


def test_what_one_role_is_sent_the_other_does_not_hold() -> None:
    policy = SeesPrefix()
    bench = Bench(policy)
    bench.registry.add(Worker("http://decode", Health.UP, role="decode"))
    request = RequestView("id", "/", body("text"))
    for role in ("regular", "decode", "regular"):
        bench.dispatcher.dispatch(request, role)
    assert policy.seen == [(0, [0, 0]), (0, [0]), (4, [4, 0])]


def test_a_request_without_text_matches_nothing() -> None:
    policy = SeesPrefix()
    bench = Bench(policy)
    bench.dispatch()
    bench.dispatch()
    assert policy.seen == [(0, [0, 0]), (0, [0, 0])]


def test_nothing_is_looked_up_or_remembered_for_who_does_not_need_it() -> None:
    class Untouchable(PrefixIndex):
        def match(self, *_: object) -> object:  # type: ignore[override]
            raise AssertionError

        insert = match  # type: ignore[assignment]

    registry = WorkerRegistry()
    registry.add(Worker("http://engine", Health.UP))
    policy = Scripted("p", 0)
    dispatcher = Dispatcher(
        registry,
        policy,
        policy,
        entropy=lambda: 0,
        now_ms=lambda: 0,
        clock_ns=lambda: 0,
        prefixes=Untouchable(),
    )
    dispatcher.complete(dispatcher.dispatch(RequestView("id", "/", body("text"))), DONE)


# ---- breakers

ONE_FAILURE = BreakerSettings(failures=1, successes=1, open_secs=1e-7, window_secs=1)  # 100 ticks


def circuit_of(bench: Bench) -> Circuit:
    return bench.workers[0].circuit


def test_failures_of_the_engine_open_its_breaker() -> None:
    bench = Bench(Scripted("p", 0), breakers=BreakerSettings(failures=2))
    for engine_ok in (False, None, True):
        bench.complete(bench.dispatch(), engine_ok)
    assert circuit_of(bench) is Circuit.CLOSED
    bench.complete(bench.dispatch(), False)
    assert circuit_of(bench) is Circuit.OPEN
    assert bench.registry.view().eligible == (1,)


def half_open() -> Bench:
    bench = Bench(Scripted("p", 0), breakers=ONE_FAILURE)
    bench.complete(bench.dispatch(), False)
    bench.ticks += 200
    bench.dispatcher.expire()
    assert circuit_of(bench) is Circuit.HALF_OPEN
    return bench


def test_a_half_open_worker_is_given_one_probe() -> None:
    bench = half_open()
    probe = bench.dispatch()
    assert probe.worker is bench.workers[0] and probe.probe
    assert bench.registry.view().eligible == (1,)
    bench.dispatcher.use(Scripted("p", 1), Scripted("fallback"))
    other = bench.dispatch(target=0)  # not even to who asks for it
    assert other.worker is bench.workers[1] and not other.probe


@pytest.mark.parametrize(
    ("engine_ok", "circuit"),
    [(True, Circuit.CLOSED), (False, Circuit.OPEN), (None, Circuit.HALF_OPEN)],
)
def test_the_probe_decides(engine_ok: bool | None, circuit: Circuit) -> None:
    bench = half_open()
    bench.complete(bench.dispatch(), engine_ok)
    assert circuit_of(bench) is circuit
    assert not bench.workers[0].probing


@pytest.mark.parametrize("engine_ok", [True, False, None])
def test_a_request_from_before_does_not_decide(engine_ok: bool | None) -> None:
    bench = Bench(Scripted("p", 0), breakers=ONE_FAILURE)
    before = bench.dispatch()
    bench.complete(bench.dispatch(), False)
    bench.ticks += 200
    bench.dispatcher.expire()
    probe = bench.dispatch()
    bench.complete(before, engine_ok)
    assert circuit_of(bench) is Circuit.HALF_OPEN
    assert bench.registry.view().eligible == (1,)
    bench.complete(probe, True)
    assert circuit_of(bench) is Circuit.CLOSED


def test_without_breakers_a_worker_may_fail_as_it_likes() -> None:
    bench = Bench(Scripted("p", 0))
    for _ in range(100):
        bench.complete(bench.dispatch(), False)
    bench.dispatcher.expire()
    assert circuit_of(bench) is Circuit.CLOSED
