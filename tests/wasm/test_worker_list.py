"""The workers in a plugin's input: the same as if all of it were encoded for each decision."""

from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.prefix_index import PrefixMatch
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, JsonEncoder
from sgl_router.wasm.abi.worker_list import MAX_KEPT_VIEWS, WorkerListEncoder
from tests.wasm.guests import request, view

NEEDS = ("pending_tokens", "prefix_match", "engine_metrics", "worker_info")
NOW_MS = 1_795_366_034_123


class Held(PrefixMatch):
    """What workers hold of a request's text."""

    def __init__(self, characters: dict[Worker, int]) -> None:
        super().__init__([], {}, set())
        self._held = characters

    def of(self, worker: Worker) -> int:
        return self._held.get(worker, 0)


def pool() -> WorkerView:
    """Two workers, of the second of which nothing is known."""
    registry = WorkerRegistry()
    known = Worker(
        "http://10.0.0.1:30000", Health.UP, labels={"zone": "a", "größe": "50 %"}, weight=2.5
    )
    known.load = 3
    known.pending_tokens = 1_200
    known.metrics = EngineMetrics(queued=4, running=9, kv_usage=0.5, at_ms=NOW_MS - 250)
    known.ttft_ms = 81.25
    registry.add(known)
    registry.add(Worker("https://b.example/v%20x", Health.DOWN))
    return registry.view()


def given_to_a_plugin(workers: WorkerView, *needs: str, asked: RequestView | None = None) -> Any:
    asked = asked or request(now_ms=NOW_MS)
    return orjson.loads(WorkerListEncoder(needs).encode(workers, asked))


FIRST = {"url": "http://10.0.0.1:30000", "healthy": True, "load": 3}
SECOND = {"url": "https://b.example/v%20x", "healthy": False, "load": 0}
UNKNOWN = {"queued": None, "running": None, "kv_usage": None, "metrics_age_ms": None}


def test_without_a_need_a_worker_has_three_keys() -> None:
    assert given_to_a_plugin(pool()) == [FIRST, SECOND]
    assert given_to_a_plugin(pool(), "request_text", "outcomes") == [FIRST, SECOND]


def test_pending_tokens() -> None:
    assert given_to_a_plugin(pool(), "pending_tokens") == [
        FIRST | {"pending_tokens": 1_200},
        SECOND | {"pending_tokens": 0},
    ]


def test_prefix_match_is_in_tokens() -> None:
    workers, asked = pool(), request(now_ms=NOW_MS)
    asked.prefix = Held({workers[0]: 4 * 512 + 3})
    assert given_to_a_plugin(workers, "prefix_match", asked=asked) == [
        FIRST | {"prefix_match": 512},
        SECOND | {"prefix_match": 0},
    ]


def test_a_text_that_nobody_was_sent_matches_nothing() -> None:
    assert given_to_a_plugin(pool(), "prefix_match") == [
        FIRST | {"prefix_match": 0},
        SECOND | {"prefix_match": 0},
    ]


def test_engine_metrics_are_null_where_there_are_none() -> None:
    assert given_to_a_plugin(pool(), "engine_metrics") == [
        FIRST | {"queued": 4, "running": 9, "kv_usage": 0.5, "metrics_age_ms": 250},
        SECOND | UNKNOWN,
    ]


def test_an_engine_may_not_say_how_full_its_cache_is() -> None:
    workers = pool()
    workers[1].metrics = EngineMetrics(queued=0, running=1, kv_usage=None, at_ms=NOW_MS)
    (_, second) = given_to_a_plugin(workers, "engine_metrics")
    assert second == SECOND | {"queued": 0, "running": 1, "kv_usage": None, "metrics_age_ms": 0}


def test_metrics_from_the_future_are_new() -> None:
    """The system's clock was set back since."""
    (first, _) = given_to_a_plugin(pool(), "engine_metrics", asked=request(now_ms=NOW_MS - 10_000))
    assert first["metrics_age_ms"] == 0


def test_worker_info() -> None:
    workers = pool()
    assert given_to_a_plugin(workers, "worker_info") == [
        FIRST
        | {"id": workers[0].id, "weight": 2.5, "labels": {"zone": "a", "größe": "50 %"}}
        | {"ttft_ms": 81.25},
        SECOND | {"id": workers[1].id, "weight": 1.0, "labels": {}, "ttft_ms": None},
    ]


def test_all_needs_together() -> None:
    workers = pool()
    (first, second) = given_to_a_plugin(workers, *NEEDS)
    for need in NEEDS:
        (alone, alone_too) = given_to_a_plugin(workers, need)
        assert alone.items() <= first.items()
        assert alone_too.items() <= second.items()
    assert len(first) == 3 + 1 + 1 + 4 + 4


def test_no_workers() -> None:
    assert given_to_a_plugin(WorkerRegistry().view(), *NEEDS) == []


def test_a_label_that_utf_8_cannot_write() -> None:
    registry = WorkerRegistry()
    registry.add(Worker("http://a:1", Health.UP, labels={"a\ud800": "\udfff"}))
    (found,) = given_to_a_plugin(registry.view(), "worker_info")
    assert found["labels"] == {"a?": "?"}


# ---- the law

_TEXTS = st.text(max_size=12) | st.sampled_from(["%", "%d%s", '"', "\\", "\0", ",", "\u2028", "☃"])
_COUNTS = st.integers(0, 2**53)
_NUMBERS = st.none() | st.floats() | st.integers(0, 10).map(float)


def set_numbers(worker: Worker, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
    """Whatever changes without a new view."""
    worker.load = draw(_COUNTS)
    worker.pending_tokens = draw(_COUNTS)
    worker.ttft_ms = draw(_NUMBERS)
    known = draw(st.booleans())
    worker.metrics = (
        EngineMetrics(draw(_COUNTS), draw(_COUNTS), draw(_NUMBERS), draw(_COUNTS))
        if known
        else None
    )


@st.composite
def pools(draw: st.DrawFn) -> WorkerView:
    """Workers with any texts, those included that a registry would refuse."""
    registry = WorkerRegistry()
    for number in range(draw(st.integers(0, 4))):
        worker = Worker(
            f"http://10.0.0.{number}",
            draw(st.sampled_from(Health)),
            labels=draw(st.dictionaries(_TEXTS, _TEXTS, max_size=3)),
            weight=draw(st.floats()),
        )
        registry.add(worker)
        worker.url, worker.id = draw(_TEXTS), draw(_TEXTS)
        set_numbers(worker, draw)
    return registry.view()


def plainly(workers: WorkerView, asked: RequestView, needs: frozenset[str]) -> list[object]:
    """The same by the book: every key of every worker, by one encoder."""
    found: list[object] = []
    for worker, healthy in zip(workers, workers.healthy, strict=True):
        keys: dict[str, object] = {"url": worker.url, "healthy": healthy, "load": worker.load}
        if "pending_tokens" in needs:
            keys["pending_tokens"] = worker.pending_tokens
        if "prefix_match" in needs:
            keys["prefix_match"] = asked.prefix.of(worker) // 4 if asked.prefix else 0
        if "engine_metrics" in needs:
            said = worker.metrics
            keys |= UNKNOWN
            if said is not None:
                keys |= {"queued": said.queued, "running": said.running}
                keys |= {"kv_usage": said.kv_usage}
                keys |= {"metrics_age_ms": max(0, asked.now_ms - said.at_ms)}
        if "worker_info" in needs:
            keys |= {"id": worker.id, "weight": worker.weight, "labels": worker.labels}
            keys |= {"ttft_ms": worker.ttft_ms}
        found.append(keys)
    return found


def canonical(encoded: bytes) -> bytes:
    """For comparing as JSON does: Python takes 1, 1.0 and true for equal."""
    return orjson.dumps(orjson.loads(encoded), option=orjson.OPT_SORT_KEYS)


@given(st.data())
def test_the_list_is_what_it_would_be_if_encoded_as_a_whole(data: st.DataObject) -> None:
    needs = data.draw(st.frozensets(st.sampled_from(NEEDS)))
    encoder = WorkerListEncoder(needs)
    views = [data.draw(pools()) for _ in range(data.draw(st.integers(1, 3)))]
    for workers in data.draw(st.lists(st.sampled_from(views), min_size=1, max_size=4)):
        for worker in workers:
            set_numbers(worker, data.draw)
        asked = request(now_ms=data.draw(_COUNTS))
        if data.draw(st.booleans()):
            asked.prefix = Held({worker: data.draw(_COUNTS) for worker in workers})
        if data.draw(st.booleans()):
            asked.excluded = frozenset(list(workers)[:1])
        assert canonical(encoder.encode(workers, asked)) == canonical(
            orjson.dumps(plainly(workers, asked, needs))
        )


@given(pools(), st.data())
def test_the_input_is_what_it_would_be_if_encoded_as_a_whole(
    workers: WorkerView, data: st.DataObject
) -> None:
    needs = data.draw(st.frozensets(st.sampled_from((*NEEDS, "request_text"))))
    config = data.draw(st.dictionaries(_TEXTS, _TEXTS | st.integers(-9, 9), max_size=2))
    state = data.draw(st.dictionaries(_TEXTS, _TEXTS | st.integers(-9, 9), max_size=2))
    model, user, text = data.draw(_TEXTS), data.draw(_TEXTS), data.draw(_TEXTS)
    asked = request(orjson.dumps({"model": model, "user": user, "prompt": text}), now_ms=NOW_MS)
    asked.id, asked.path = data.draw(_TEXTS), data.draw(_TEXTS)
    asked.entropy = data.draw(st.integers(0, 2**53 - 1))
    about: dict[str, object] = {
        "id": asked.id,
        "path": asked.path,
        "model": model or None,
        "stream": False,
        "session": user or None,
        "attempt": 0,
        "text_bytes": len(text.encode()),
    }
    if "pending_tokens" in needs:
        about["prompt_tokens"] = len(text) // 4
    expected = {
        "workers": plainly(workers, asked, needs),
        "request_text": text or None if "request_text" in needs else None,
        "config": config,
        "state": state,
        "request": about,
        "now_ms": asked.now_ms,
        "entropy": asked.entropy,
    }
    encoder = JsonEncoder(config, needs=needs, max_text_bytes=1000)
    encoded = encoder.encode_request(workers, asked, EMPTY_STATE.merged("p", state))
    assert canonical(encoded) == canonical(orjson.dumps(expected))


# ---- what is kept


@pytest.mark.parametrize("excluded", [False, True])
def test_no_more_views_are_kept_than_that(excluded: bool) -> None:
    encoder = WorkerListEncoder(())
    for _ in range(3 * MAX_KEPT_VIEWS):
        workers, asked = view(True, False), request()
        if excluded:
            asked.excluded = frozenset({workers[0]})
        encoder.encode(workers, asked)
        assert len(encoder._frames) <= (0 if excluded else MAX_KEPT_VIEWS)
