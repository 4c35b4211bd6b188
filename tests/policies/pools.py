"""Pools of workers for the policies' tests, and how they are asked."""

from collections.abc import Sequence

from hypothesis import strategies as st

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker

ENTROPY = st.integers(0, 2**53 - 1)


def view_of(loads: Sequence[int], down: Sequence[int] = ()) -> WorkerView:
    """Workers with these loads; those at the indexes in `down` are not healthy."""
    registry = WorkerRegistry()
    for i, load in enumerate(loads):
        worker = Worker(f"http://engine-{i}:8000", Health.DOWN if i in down else Health.UP)
        worker.load = load
        registry.add(worker)
    return registry.view()


def ask(policy: Policy, workers: WorkerView, entropy: int = 0) -> int:
    """The policy's choice, which must be one."""
    request = RequestView("id", "/v1/completions")
    request.entropy = entropy
    index = policy.select_worker(workers, request)
    assert index is not None
    return index


@st.composite
def pools(draw: st.DrawFn, min_eligible: int = 1) -> WorkerView:
    """Any pool with at least so many eligible workers, with any loads."""
    loads = draw(st.lists(st.integers(0, 6) | st.integers(0, 10**6), min_size=min_eligible))
    up = draw(st.sets(st.sampled_from(range(len(loads))), min_size=min_eligible))
    return view_of(loads, [i for i in range(len(loads)) if i not in up])
