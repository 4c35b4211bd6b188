"""The pool of workers, and the view of it that one decision gets."""

from collections.abc import Iterator, Sequence
from typing import overload

from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError


class WorkerView(Sequence[Worker]):
    """The workers as one decision sees them: all of them, in a stable order.

    It is made anew only when the pool or a worker's health changes, never per request
    (but for a request that must avoid workers it has already tried).

    Attributes:
        healthy: for each worker, whether it may be picked.
        eligible: the indexes that may be picked, ascending.
    """

    __slots__ = ("_workers", "eligible", "healthy")

    def __init__(self, workers: tuple[Worker, ...], excluded: frozenset[Worker]) -> None:
        self._workers = workers
        self.healthy = tuple(w.healthy and w not in excluded for w in workers)
        self.eligible = tuple(i for i, healthy in enumerate(self.healthy) if healthy)

    @overload
    def __getitem__(self, index: int) -> Worker: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Worker, ...]: ...
    def __getitem__(self, index: int | slice) -> Worker | tuple[Worker, ...]:
        return self._workers[index]

    def __len__(self) -> int:
        return len(self._workers)

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers)


NO_WORKERS: frozenset[Worker] = frozenset()


class WorkerRegistry:
    """The workers in the order in which they were added, each URL once."""

    def __init__(self) -> None:
        self._by_url: dict[str, Worker] = {}
        self._view: WorkerView | None = None

    def add(self, worker: Worker) -> None:
        """Raises ConfigError where the URL is there already."""
        if worker.url in self._by_url:
            raise ConfigError(f"worker URL {worker.url!r} is given twice (option --worker-urls)")
        self._by_url[worker.url] = worker
        self._view = None

    def set_health(self, worker: Worker, health: Health) -> None:
        worker.health = health
        worker.streak = 0  # it counted against the state before
        self._view = None

    def view(self, excluded: frozenset[Worker] = NO_WORKERS) -> WorkerView:
        """The workers for one decision; those in `excluded` count as unhealthy."""
        if excluded:
            return WorkerView(tuple(self._by_url.values()), excluded)
        if self._view is None:
            self._view = WorkerView(tuple(self._by_url.values()), NO_WORKERS)
        return self._view

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_url.values())

    def __len__(self) -> int:
        return len(self._by_url)
