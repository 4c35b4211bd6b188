"""Pools of workers for the policies' tests, and how they are asked."""

from collections.abc import Sequence

import orjson
from hypothesis import strategies as st

from sgl_router.core.policy import Policy
from sgl_router.core.prefix_index import PrefixMatch
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import EngineMetrics, Health, Role, Worker

ENTROPY = st.integers(0, 2**53 - 1)
NOW_MS = 1_700_000_000_000


def view_of(
    loads: Sequence[int],
    down: Sequence[int] = (),
    *,
    model: str | None = None,
    role: Role = "regular",
) -> WorkerView:
    """Workers with these loads; those at the indexes in `down` are not healthy."""
    registry = WorkerRegistry()
    for i, load in enumerate(loads):
        health = Health.DOWN if i in down else Health.UP
        worker = Worker(f"http://engine-{i}:8000", health, role=role, model_id=model)
        worker.load = load
        registry.add(worker)
    return registry.view(role=role, model=model)


def seen_as(
    workers: Sequence[Worker], down: Sequence[int] = (), *, without: Sequence[int] = ()
) -> WorkerView:
    """A view of the same workers, of whom some are down and some are gone."""
    members = tuple(worker for i, worker in enumerate(workers) if i not in without)
    return WorkerView(members, frozenset(workers[i] for i in down))


def metrics(
    queued: int = 0, kv_usage: float | None = None, at_ms: int = NOW_MS, running: int = 0
) -> EngineMetrics:
    return EngineMetrics(queued, running, kv_usage, at_ms)


def request_of(
    entropy: int = 0,
    *,
    text: str | None = None,
    key: str | None = None,
    now_ms: int = NOW_MS,
    prefix: PrefixMatch | None = None,
) -> RequestView:
    """A request with this prompt, and this routing key in a header."""
    body = b"" if text is None else orjson.dumps({"prompt": text})
    request = RequestView("id", "/v1/completions", body)
    request.entropy = entropy
    request.now_ms = now_ms
    request.routing_key = key
    request.prefix = prefix
    return request


def ask(
    policy: Policy,
    workers: WorkerView,
    entropy: int = 0,
    *,
    text: str | None = None,
    key: str | None = None,
    now_ms: int = NOW_MS,
    prefix: PrefixMatch | None = None,
) -> int:
    """The policy's choice, which must be one."""
    request = request_of(entropy, text=text, key=key, now_ms=now_ms, prefix=prefix)
    index = policy.select_worker(workers, request)
    assert index is not None
    return index


@st.composite
def pools(draw: st.DrawFn, min_eligible: int = 1, max_size: int | None = None) -> WorkerView:
    """Any pool with at least so many eligible workers, with any loads."""
    some = st.integers(0, 6) | st.integers(0, 300) | st.integers(0, 10**6)
    loads = draw(st.lists(some, min_size=min_eligible, max_size=max_size))
    up = draw(st.sets(st.sampled_from(range(len(loads))), min_size=min_eligible))
    return view_of(loads, [i for i in range(len(loads)) if i not in up])
