"""The pool of workers, and the view of it that one decision gets."""

from collections.abc import Callable, Iterator, Sequence
from typing import overload

from sgl_router.core.worker import Circuit, Health, Role, Worker
from sgl_router.errors import ConfigError

Pool = tuple[Role, str | None]


class WorkerView(Sequence[Worker]):
    """The workers as one decision sees them: all that could serve it, in a stable order.

    It is made anew only when the pool or the state of a worker changes, never per request
    (but for a request that must avoid workers it has already tried).

    Attributes:
        healthy: for each worker, whether it may be picked.
        eligible: the indexes that may be picked, ascending.
        pool: the role of these workers, and the model that they serve; None: models of any name.
    """

    __slots__ = ("_workers", "eligible", "healthy", "pool")

    def __init__(
        self,
        workers: tuple[Worker, ...],
        excluded: frozenset[Worker],
        pool: Pool = ("regular", None),
    ) -> None:
        self._workers = workers
        self.pool = pool
        self.healthy = tuple(w.available and w not in excluded for w in workers)
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

Listener = Callable[[Worker], None]


class WorkerRegistry:
    """The workers in the order in which they were added, each URL once.

    Attributes:
        models: the models that workers are declared to serve; empty: requests are not routed by
            model.
        on_add, on_remove: told of each worker that comes or has gone.
    """

    def __init__(self) -> None:
        self._by_url: dict[str, Worker] = {}
        self._views: dict[Pool, WorkerView] = {}
        self.models: frozenset[str] = frozenset()
        self.on_add: list[Listener] = []
        self.on_remove: list[Listener] = []

    def add(self, worker: Worker) -> None:
        """Raises ConfigError where the URL is there already."""
        if worker.url in self._by_url:
            raise ConfigError(f"worker URL {worker.url!r} is given twice")
        self._by_url[worker.url] = worker
        self._views.clear()
        if worker.model_id is not None:
            self.models |= {worker.model_id}
        for listener in self.on_add:
            listener(worker)

    def remove(self, worker: Worker) -> None:
        """Forget a worker; requests in flight on it go on."""
        del self._by_url[worker.url]
        self.changed()
        for listener in self.on_remove:
            listener(worker)

    def get(self, url: str) -> Worker | None:
        return self._by_url.get(url)

    def by_id(self, id: str) -> Worker | None:
        return next((worker for worker in self._by_url.values() if worker.id == id), None)

    def set_health(self, worker: Worker, health: Health) -> None:
        worker.health = health
        worker.streak = 0  # it counted against the state before
        self._views.clear()

    def set_circuit(self, worker: Worker, circuit: Circuit, *, probing: bool = False) -> None:
        worker.circuit = circuit
        worker.probing = probing
        self._views.clear()

    def changed(self) -> None:
        """What a worker is has changed: its model, its weight, whether it is there."""
        self._views.clear()
        for worker in self._by_url.values():
            worker.touched()
        self.models = frozenset(w.model_id for w in self._by_url.values() if w.model_id is not None)

    def view(
        self,
        excluded: frozenset[Worker] = NO_WORKERS,
        role: Role = "regular",
        model: str | None = None,
    ) -> WorkerView:
        """The workers for one decision; those in `excluded` count as unhealthy.

        Where workers are declared to serve models, a request for a `model` has those that serve
        it and those of no model in particular; a request for no model has them all.
        """
        if model is not None and model not in self.models:
            model = ""  # a client must not make a view of each name that it thinks of
        pool = role, model
        view = self._views.get(pool)
        if view is None:
            view = self._views[pool] = WorkerView(self._serving(role, model), NO_WORKERS, pool)
        return WorkerView(tuple(view), excluded, pool) if excluded else view

    @property
    def available_roles(self) -> frozenset[Role]:
        """Of which there is a worker that may be given a request."""
        return frozenset(worker.role for worker in self._by_url.values() if worker.available)

    def _serving(self, role: Role, model: str | None) -> tuple[Worker, ...]:
        return tuple(
            worker
            for worker in self._by_url.values()
            if worker.role == role and (model is None or worker.model_id in (None, model))
        )

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._by_url.values())

    def __len__(self) -> int:
        return len(self._by_url)
