"""`WasmPolicy`: a plugin as a policy, whichever of its versions decides."""

import logging
import weakref
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal

from sgl_router.core.policy import Outcome, PendingChoice, Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.status import PluginStatus
from sgl_router.wasm.version import PluginVersion

_log = logging.getLogger(__name__)

TRIAL_DECISIONS = 100
"""Taken by a version, after which it stands on its own: it is not rolled back any more."""

TRIAL_FAILURES = 3
"""Of a version that has not taken one decision yet: it is rolled back."""

Change = Literal["swapped", "rolled_back", "rejected"]
"""How another version took over: by a swap, by a rollback, or because the last one failed."""


class WasmPolicy(Policy):
    """Decides by a plugin.

    All users of one plugin share this object, and so its instance and its state. It belongs to
    one thread at a time: after it is loaded, to the event loop's. Each decision is taken by one
    version from end to end.

    Attributes:
        current: the version that decides.
        previous: the version that a rollback returns to, or None.
        rejected: SHA-256 of a module that failed its first decisions and was rolled back, or None.
        stale: why the newest module or settings of its source are not in use, or None.
        swaps: how often another version took over, back or forth.
        on_change: told when another version has taken over.
    """

    def __init__(self, first: PluginVersion) -> None:
        self.name = first.config.name
        self.previous: PluginVersion | None = None
        self.rejected: str | None = None
        self.stale: str | None = None
        self.swaps = 0
        self.on_change: list[Callable[[WasmPolicy, Change], None]] = []
        self._pinned = False
        self._on_trial = False
        self._use(first)

    @property
    def failures(self) -> Counter[FailureKind]:
        """How many decisions the current version failed to take, by kind."""
        return self.current.failures

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Ask the plugin. Raises DecisionError; the state is then as it was before."""
        return self.current.select_worker(workers, request)

    def choose(self, workers: WorkerView, request: RequestView) -> int | PendingChoice | None:
        """Ask the plugin, here or on its own thread. Raises DecisionError as `select_worker`."""
        return self.current.choose(workers, request)

    def on_request_complete(self, outcome: Outcome) -> None:
        """Tell the plugin, where it exports the function; its failure fails nothing else."""
        self.current.on_request_complete(outcome)

    def choose_aside(
        self, workers: WorkerView, request: RequestView, most: int
    ) -> PendingChoice | None:
        """Ask the plugin on its own thread; `keep_aside` must have been told.

        None where as many as `most` decisions wait already. Raises DecisionError.
        """
        return self.current.offload(workers, request, most)

    def keep_aside(self, aside: bool) -> None:
        """Whether it decides on its own thread however quick it is."""
        self._pinned = aside
        self.current.keep_offloaded(aside)

    def swap(self, version: PluginVersion) -> None:
        """Decide by another version from the next decision on, which takes over the state."""
        before = self.current
        version.take_state(before)
        self._replace(version, "swapped")
        _log.info("plugin %s swapped: %s decides, %s before", self.name, version, before.id)

    def roll_back(self) -> bool:
        """Return to the version before; False where there is none.

        It goes on from the state in which it stopped: the other may have spoilt its own.
        """
        return self._return("rolled_back")

    def _return(self, change: Change) -> bool:
        version, before = self.previous, self.current
        if version is None:
            return False
        version.revive()
        self._replace(version, change)
        _log.warning(
            "plugin %s: rolled back from version %s to %s", self.name, before.id, version.id
        )
        return True

    def close(self) -> None:
        """It decides no more; what is under way ends as it is."""
        self.current.retire()

    def _replace(self, version: PluginVersion, change: Change) -> None:
        before = self.current
        self.previous = None if change == "rejected" else before  # what failed is not returned to
        self._on_trial = change == "swapped"
        self._use(version)
        before.on_failure = None
        before.retire()
        self.swaps += 1
        for told in self.on_change:
            told(self, change)

    def _use(self, version: PluginVersion) -> None:
        self.current = version
        self.version = version.id
        self.needs = version.needs
        self.fallback = version.config.fallback
        # Not by a reference: with it, a plugin that is unloaded would be a cycle with its memory.
        version.on_failure = partial(_tell_of_failure, weakref.ref(self))
        self._trial_failures = 0
        version.keep_offloaded(self._pinned)

    def _on_failure(self, version: PluginVersion, error: DecisionError) -> None:
        """Return to the version before where the new one fails from the start."""
        if not self._on_trial or version.decisions >= TRIAL_DECISIONS:
            return
        self._trial_failures += 1
        fails_always = not version.decisions and self._trial_failures >= TRIAL_FAILURES
        if fails_always or not version.quarantine.asked:
            self.rejected = version.digest
            self.stale = (
                f"version {version.id} failed {self._trial_failures} of its first "
                f"{version.decisions + self._trial_failures} decisions and was rolled back; the "
                f"last: {error.why}"
            )
            self._return("rejected")
            _log.warning("plugin %s: %s", self.name, self.stale)

    def status(self, now_ms: int, in_use_as: list[str]) -> PluginStatus:
        """What is shown of it, with what it is used for."""
        current, previous = self.current, self.previous
        failure = current.last_failure
        return PluginStatus(
            name=self.name,
            current=current.status(),
            previous=None if previous is None else previous.status(),
            lane="offload" if current.offloaded else "inline",
            waiting=current.waiting,
            quarantine=current.quarantine.status(now_ms),
            fallback=current.config.fallback,
            stale=self.stale,
            last_failure=None if failure is None else failure.line(self.name),
            last_failure_detail=failure,
            swaps=self.swaps,
            in_use_as=in_use_as,
        )


def _tell_of_failure(
    policy: weakref.ref[WasmPolicy], version: PluginVersion, error: DecisionError
) -> None:
    of = policy()
    if of is not None:
        of._on_failure(version, error)
