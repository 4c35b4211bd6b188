"""The table encoding: whatever has happened, the guest has what a naive encoding would give it."""

from math import isnan
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)
from xxhash import xxh3_64_intdigest

from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import NO_WORKERS, WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Circuit, EngineMetrics, Health, Role, Worker
from sgl_router.wasm.abi.table_v1 import (
    ALL_HEALTHY,
    MAX_TABLES,
    METRICS_REFRESH_MS,
    UNKNOWN_AGE,
    TableEncoder,
)
from tests.wasm.guests import request, view
from tests.wasm.table_guests import (
    AGE,
    WORKER,
    Hosted,
    plain_encoder,
    record_of,
    table_guest,
)

GUEST = table_guest("(local.get $count)")
ALL_NEEDS = frozenset({"request_text", "pending_tokens", "prefix_match", "engine_metrics"})
MODELS = (None, *(f"m{number}" for number in range(MAX_TABLES)))
ROLES: tuple[Role, ...] = ("regular", "prefill")
TEXTS = ("", "the quick brown fox jumps over the lazy dog", "the quick brown cat", "a b c d e f g")


class Fleet(RuleBasedStateMachine):
    """Whatever can happen to workers, and decisions in between."""

    workers: Bundle[Worker] = Bundle("workers")

    def __init__(self) -> None:
        super().__init__()
        self.registry = WorkerRegistry()
        self.prefixes = PrefixIndex(100_000)
        self.now_ms = 1_795_366_034_123
        self.hosted = Hosted(GUEST)
        self.other = Hosted(GUEST)
        self.names = 0
        self.gone: list[Worker] = []

    @initialize(needs=st.sets(st.sampled_from(sorted(ALL_NEEDS))))
    def begin(self, needs: set[str]) -> None:
        self.needs = frozenset(needs)
        self.encoder = TableEncoder(needs, 1000)

    def _new(self, role: Role, model: str | None) -> Worker:
        self.names += 1
        worker = Worker(f"http://10.0.0.1:{self.names}", Health.UP, role=role, model_id=model)
        self.registry.add(worker)
        return worker

    @rule(
        target=workers,
        count=st.integers(1, 5),
        role=st.sampled_from(ROLES),
        model=st.sampled_from(MODELS),
    )
    def add(self, count: int, role: Role, model: str | None) -> Any:
        return multiple(*(self._new(role, model) for _ in range(count)))

    @rule(worker=consumes(workers))
    def remove(self, worker: Worker) -> None:
        self.registry.remove(worker)
        self.prefixes.forget(worker)
        self.gone.append(worker)

    @rule(worker=workers, load=st.integers(0, 2**31 - 1))
    def set_load(self, worker: Worker, load: int) -> None:
        worker.load = load
        worker.touched()

    @rule(worker=workers, tokens=st.integers(0, 2**32 - 1))
    def set_pending(self, worker: Worker, tokens: int) -> None:
        worker.pending_tokens = tokens
        worker.touched()

    @rule(worker=workers, ttft_ms=st.none() | st.floats(0, 1e9))
    def set_ttft(self, worker: Worker, ttft_ms: float | None) -> None:
        worker.ttft_ms = ttft_ms
        worker.touched()

    @rule(
        worker=workers,
        queued=st.integers(0, 10**9),
        kv_usage=st.none() | st.floats(0, 1),
        age_ms=st.integers(-50, 5000),
    )
    def set_metrics(self, worker: Worker, queued: int, kv_usage: float | None, age_ms: int) -> None:
        worker.metrics = EngineMetrics(queued, queued // 2, kv_usage, self.now_ms - age_ms)
        worker.touched()

    @rule(worker=workers)
    def lose_metrics(self, worker: Worker) -> None:
        worker.metrics = None
        worker.touched()

    @rule(worker=workers, health=st.sampled_from(list(Health)))
    def set_health(self, worker: Worker, health: Health) -> None:
        self.registry.set_health(worker, health)

    @rule(worker=workers, circuit=st.sampled_from(list(Circuit)), probing=st.booleans())
    def set_circuit(self, worker: Worker, circuit: Circuit, probing: bool) -> None:
        self.registry.set_circuit(worker, circuit, probing=probing)

    @rule(worker=workers, weight=st.floats(0, 1e30))
    def set_weight(self, worker: Worker, weight: float) -> None:
        worker.weight = weight
        self.registry.changed()

    @rule(worker=workers, model=st.sampled_from(MODELS))
    def move(self, worker: Worker, model: str | None) -> None:
        worker.model_id = model
        self.registry.changed()

    @rule(worker=workers, text=st.sampled_from(TEXTS), model=st.sampled_from(MODELS))
    def place(self, worker: Worker, text: str, model: str | None) -> None:
        self.prefixes.insert((worker.role, model), text, worker)

    @rule()
    def a_request_ends_on_one_that_has_left(self) -> None:
        for worker in self.gone:
            worker.load = max(0, worker.load - 1)
            worker.touched()

    @rule(ms=st.integers(-1000, 1000))
    def time_goes_by(self, ms: int) -> None:
        self.now_ms += ms

    @rule()
    def the_instance_is_thrown_away(self) -> None:
        self.hosted = Hosted(GUEST)

    @rule()
    def another_instance_decides(self) -> None:
        self.hosted, self.other = self.other, self.hosted

    @rule()
    def the_plugin_is_put_away_for_a_while(self) -> None:
        self.encoder.close()
        assert all(worker.watched_by == () for worker in (*self.registry, *self.gone))

    @rule(
        role=st.sampled_from(ROLES),
        model=st.sampled_from(MODELS),
        text=st.sampled_from(TEXTS),
        excluded=st.sets(st.integers(0, 9), max_size=3),
        how=st.sampled_from(["asked", "asked", "asked", "asked", "never asked", "snapshot"]),
    )
    def decide(
        self, role: Role, model: str | None, text: str, excluded: set[int], how: str
    ) -> None:
        known = list(self.registry)
        tried = frozenset(known[index] for index in excluded if index < len(known))
        workers = self.registry.view(tried or NO_WORKERS, role, model)
        asked = RequestView("r", "/v1/completions", b'{"prompt": "%b"}' % text.encode())
        asked.now_ms = self.now_ms
        asked.prefix = self.prefixes.match(workers.pool, text)
        driver = self.hosted.driver
        if how == "never asked":
            self.encoder.encode(driver, workers, asked)
            return
        if how == "snapshot":
            chosen = driver.select_from(self.encoder.snapshot(workers, asked))
        else:
            chosen = self.hosted.decide(self.encoder, workers, asked)
        assert chosen == len(workers)
        self._compare(workers, asked)

    def _compare(self, workers: WorkerView, asked: RequestView) -> None:
        found = self.hosted.records()
        assert len(found) == len(workers)
        for worker, healthy, record in zip(workers, workers.healthy, found, strict=True):
            fields = WORKER.unpack(record)
            expected = WORKER.unpack(record_of(worker, healthy, asked, self.needs))
            for number, (is_there, should) in enumerate(zip(fields, expected, strict=True)):
                if number == AGE and should != UNKNOWN_AGE:
                    assert abs(is_there - should) < METRICS_REFRESH_MS
                else:
                    assert is_there == should or (isnan(is_there) and isnan(should)), number

    @invariant()
    def nobody_is_watched_for_more_tables_than_there_may_be(self) -> None:
        assert all(len(worker.watched_by) <= MAX_TABLES for worker in self.registry)
        assert sum(len(worker.watched_by) for worker in self.gone) <= MAX_TABLES * len(self.gone)


Fleet.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestFleet = Fleet.TestCase


# ---- what is written, and what is not


def written(hosted: Hosted) -> int:
    """How many records the last input had."""
    return int.from_bytes(hosted.driver.exchange.bytes[100:104], "little")


def test_only_what_has_changed_is_written() -> None:
    hosted, encoder, workers = Hosted(GUEST), plain_encoder(), view(*[True] * 50)
    hosted.decide(encoder, workers, request())
    assert written(hosted) == 50
    hosted.decide(encoder, workers, request())
    assert written(hosted) == 0
    for index in (3, 3, 17):
        workers[index].load += 1
        workers[index].touched()
    hosted.decide(encoder, workers, request())
    assert written(hosted) == 2


def test_a_retry_writes_the_worker_that_was_tried_and_then_gives_it_back() -> None:
    registry = WorkerRegistry()
    for port in range(1, 21):
        registry.add(Worker(f"http://10.0.0.1:{port}", Health.UP))
    hosted, encoder = Hosted(GUEST), plain_encoder()
    hosted.decide(encoder, registry.view(), request())
    tried = registry.view()[4]
    for workers, healthy in ((registry.view(frozenset({tried})), 0), (registry.view(), 1)):
        hosted.decide(encoder, workers, request())
        assert written(hosted) == 1
        assert WORKER.unpack(hosted.records()[4])[1] == healthy


def test_no_worker_is_a_decision_like_others() -> None:
    hosted, encoder, workers = Hosted(table_guest("(i32.const -1)")), plain_encoder(), view(True)
    for expected in (1, 0):
        assert hosted.decide(encoder, workers, request()) is None
        assert written(hosted) == expected


def test_one_worker_in_the_place_of_another() -> None:
    registry = WorkerRegistry()
    old, kept, new = (Worker(f"http://10.0.0.1:{port}", Health.UP) for port in (1, 2, 3))
    registry.add(old)
    registry.add(kept)
    hosted, encoder = Hosted(GUEST), plain_encoder()
    hosted.decide(encoder, registry.view(), request())
    registry.remove(old)
    registry.add(new)
    asked = request()
    hosted.decide(encoder, registry.view(), asked)
    assert hosted.records() == [record_of(worker, True, asked) for worker in (kept, new)]
    assert [len(worker.watched_by) for worker in (old, kept, new)] == [0, 1, 1]


def test_a_prefix_counts_for_its_own_request_only() -> None:
    workers = view(True, True, True)
    prefixes = PrefixIndex(100_000)
    prefixes.insert(workers.pool, "x" * 80, workers[1])
    hosted, encoder = Hosted(GUEST), TableEncoder({"prefix_match"}, 1024)
    for text, tokens in (("x" * 80, 20), ("y", 0), ("x" * 41, 10), ("x" * 41, 10), ("", 0)):
        asked = request()
        asked.prefix = prefixes.match(workers.pool, text)
        hosted.decide(encoder, workers, asked)
        assert [WORKER.unpack(record)[11] for record in hosted.records()] == [0, tokens, 0]
    hosted.decide(encoder, workers, request())
    assert written(hosted) == 0


def test_metrics_age_without_news() -> None:
    workers = view(True, True, True)
    said = EngineMetrics(queued=4, running=9, kv_usage=0.5, at_ms=1_000)
    workers[1].metrics = said
    hosted, encoder = Hosted(GUEST), TableEncoder({"engine_metrics"}, 1024)
    ages = []
    for now_ms in (1_500, 1_599, 1_600, 1_650, 1_100):
        hosted.decide(encoder, workers, request(now_ms=now_ms))
        ages.append((WORKER.unpack(hosted.records()[1])[AGE], written(hosted)))
    assert ages == [(500, 3), (500, 0), (600, 1), (600, 0), (100, 1)]
    assert WORKER.unpack(hosted.records()[0])[3:5] == (-1, -1)
    assert WORKER.unpack(hosted.records()[0])[AGE] == UNKNOWN_AGE
    assert WORKER.unpack(hosted.records()[1])[3:6] == (9, 4, 0.5)


def test_the_pool_that_was_seen_first_makes_room() -> None:
    registry = WorkerRegistry()
    worker = Worker("http://10.0.0.1:1", Health.UP)
    registry.add(worker)
    models = [f"m{number}" for number in range(MAX_TABLES + 1)]
    for number, model in enumerate(models):
        registry.add(Worker(f"http://10.0.1.1:{number + 1}", Health.UP, model_id=model))
    hosted, encoder = Hosted(GUEST), plain_encoder()
    for model in models:
        hosted.decide(encoder, registry.view(model=model), request())
    assert len(worker.watched_by) == MAX_TABLES
    hosted.decide(encoder, registry.view(model=models[1]), request())
    assert written(hosted) == 0
    hosted.decide(encoder, registry.view(model=models[0]), request())
    assert written(hosted) == 2
    assert hosted.number("frees") == 0, "the guest's own table is used again"


def test_no_two_pools_share_a_table() -> None:
    registry = WorkerRegistry()
    models = [f"m{number}" for number in range(MAX_TABLES + 3)]
    for number, model in enumerate(models):
        registry.add(Worker(f"http://10.0.1.1:{number + 1}", Health.UP, model_id=model))
    hosted, encoder = Hosted(GUEST), plain_encoder()
    for model in (*models, *models[-MAX_TABLES:]):
        asked, workers = request(), registry.view(model=model)
        hosted.decide(encoder, workers, asked)
        assert hosted.records() == [record_of(worker, True, asked) for worker in workers]
    assert written(hosted) == 0


def test_what_nobody_asked_for_says_nothing() -> None:
    workers = view(True)
    workers[0].metrics = EngineMetrics(1, 2, 0.5, 0)
    workers[0].pending_tokens = 77
    hosted = Hosted(GUEST)
    hosted.decide(plain_encoder(), workers, request(b'{"prompt": "x"}', now_ms=50))
    fields = WORKER.unpack(hosted.records()[0])
    assert fields[3:5] == (-1, -1)
    assert isnan(fields[5])
    assert fields[AGE:] == (UNKNOWN_AGE, 0, 0)
    assert hosted.request()[2:] == (0, 0, 0, 0, 0, ALL_HEALTHY, 0, 0, 0)


@pytest.mark.parametrize(("healthy", "flags"), [((True, True), ALL_HEALTHY), ((True, False), 0)])
def test_the_request_tells_whether_all_are_healthy(healthy: tuple[bool, ...], flags: int) -> None:
    hosted = Hosted(GUEST)
    encoder = plain_encoder()
    for workers in (view(True, True), view(*healthy), view(True, True), view(*healthy)):
        for _ in range(2):
            hosted.decide(encoder, workers, request())
    assert hosted.request()[7] == flags


@pytest.mark.parametrize("weight", [1e300, 1.7976931348623157e308])
def test_a_weight_beyond_single_precision_is_the_largest_there_is(weight: float) -> None:
    workers = view(True)
    workers[0].weight = weight
    hosted = Hosted(GUEST)
    hosted.decide(plain_encoder(), workers, request())
    assert WORKER.unpack(hosted.records()[0])[7] == pytest.approx(3.4028235e38)


def test_names_stay_the_same() -> None:
    worker = Worker("http://10.0.0.1:30000", Health.UP)
    names = []
    for _ in range(2):
        registry = WorkerRegistry()
        registry.add(worker)
        hosted = Hosted(GUEST)
        hosted.decide(plain_encoder(), registry.view(), request())
        fields = WORKER.unpack(hosted.records()[0])
        names.append((f"{fields[0]:08x}", fields[8]))
    assert names == [(worker.id[:8], xxh3_64_intdigest(b"http://10.0.0.1:30000"))] * 2
