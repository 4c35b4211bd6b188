"""When a worker counts as up or down: thresholds over what was observed of it.

An observation is a health check's result, or a connection that an engine refused. Observations
that agree with the worker's state reset its streak; as many in a row that contradict it as the
table says change the state.
"""

from collections.abc import Callable
from dataclasses import dataclass

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker


@dataclass(frozen=True, slots=True)
class HealthThresholds:
    """Observations in a row that change a worker's state (defaults: sglang-router's)."""

    failures: int = 3
    successes: int = 2


class HealthTable:
    """Applies observations to the workers of one registry.

    Attributes:
        on_change: told of each worker whose state has changed.
    """

    def __init__(self, registry: WorkerRegistry, thresholds: HealthThresholds) -> None:
        self._registry = registry
        self.on_change: Callable[[Worker], None] | None = None
        # (state, observation) -> (observations in a row needed, state that follows)
        self._transitions = {
            (Health.UNKNOWN, True): (1, Health.UP),
            (Health.UNKNOWN, False): (thresholds.failures, Health.DOWN),
            (Health.UP, False): (thresholds.failures, Health.DOWN),
            (Health.DOWN, True): (thresholds.successes, Health.UP),
        }

    def observe(self, worker: Worker, ok: bool) -> bool:
        """Count one observation; True where it changed the worker's state."""
        transition = self._transitions.get((worker.health, ok))
        if transition is None:
            worker.streak = 0
            return False
        needed, following = transition
        worker.streak += 1
        if worker.streak < needed:
            return False
        self._registry.set_health(worker, following)
        if self.on_change is not None:
            self.on_change(worker)
        return True
