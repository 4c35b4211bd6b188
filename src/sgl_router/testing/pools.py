"""Workers and requests that the conformance checks ask about."""

from collections.abc import Collection, Sequence

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.testing.case import MAX_ENTROPY, MAX_I32, CaseRequest, DecisionCase, TokenMatch

NOW_MS = 1_795_366_034_123

MANY_ENTROPIES = (0, 1, 2**20 + 7, 2**52, 2**53 // 3, MAX_ENTROPY)


def pool(size: int, down: Collection[int] = (), *, spread: bool = True) -> WorkerView:
    """Workers of which those in `down` must not be picked.

    Args:
        spread: their loads and all else differ; else they are alike but for their URLs.
    """
    registry = WorkerRegistry()
    for index in range(size):
        health = Health.DOWN if index in down else Health.UP
        url = f"http://10.0.{index // 250}.{index % 250 + 1}:30000"
        worker = Worker(url, health, labels={"zone": "ab"[index % 2]} if spread else {})
        if spread:
            worker.load = (index * 7) % 5
            worker.pending_tokens = (index * 131) % 900
            worker.ttft_ms = 40.0 + index % 50
            worker.metrics = EngineMetrics(index % 3, index % 9, (index % 10) / 10, NOW_MS - 200)
        registry.add(worker)
    return registry.view()


def case(
    workers: WorkerView,
    *,
    entropy: int = 2**52 + 12_345,
    text: str | None = "You are a helpful assistant. Hello",
    session: str | None = "u42",
    model: str | None = "llama",
    now_ms: int = NOW_MS,
    attempt: int = 0,
    state: dict[str, object] | None = None,
) -> DecisionCase:
    """An everyday request for these workers."""
    request = CaseRequest(
        "chatcmpl-1", text=text, session=session, model=model, stream=entropy % 2 == 0
    )
    request.entropy, request.now_ms, request.attempt = entropy, now_ms, attempt
    held = {worker: index % 7 for index, worker in enumerate(workers)}
    request.prefix = TokenMatch(held if text else {})
    return DecisionCase(workers, request, state or {})


def masks(size: int) -> list[tuple[int, ...]]:
    """Which workers are down: all but one, each in turn; one in two; the first; the last."""
    all_but = [tuple(i for i in range(size) if i != up) for up in range(size)]
    return [*all_but, tuple(range(0, size, 2)), tuple(range(1, size, 2)), (0,), (size - 1,)]


def extreme_cases(size: int) -> Sequence[DecisionCase]:
    """The largest and the smallest numbers that a router says."""
    workers = pool(size, spread=False)
    for index, worker in enumerate(workers):
        most = index % 2 == 0
        worker.load = MAX_I32 if most else 0
        worker.pending_tokens = 2**32 - 1 if most else 0
        worker.ttft_ms = 1e9 if most else 0.0
        worker.weight = 1e12 if most else 0.0
        worker.metrics = EngineMetrics(10**9, 10**9, 1.0, 0) if most else EngineMetrics(0, 0, 0, 1)
    return [
        case(workers, entropy=entropy, now_ms=now_ms)
        for entropy in (0, MAX_ENTROPY)
        for now_ms in (0, 2**53)
    ]


def outcomes() -> Sequence[Outcome]:
    """How requests end: well, with everything known; badly, with nothing known."""
    url = "http://10.0.0.1:30000"
    return (
        Outcome(url, True, 200, 81.2, 913.4, 64, None),
        Outcome(url, False, None, None, 0.1, 0, None),
        Outcome(url, False, 500, None, 12.5, 1, 'it said: "no" \n\u2028 \U0001f600'),
        Outcome("http://gone.invalid:1", True, 204, 0.0, 0.0, 0, None),
    )
