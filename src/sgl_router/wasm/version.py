"""One version of a plugin: its module with its settings, its instance, its state and its record."""

import logging
import time
from collections import Counter
from collections.abc import Callable
from functools import partial

from sgl_router.core.policy import KNOWN_NEEDS, Choice, Outcome, PendingChoice
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.guest import Guest, TimedAnswer
from sgl_router.wasm.offload import Job, OffloadLane
from sgl_router.wasm.quarantine import Quarantine
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.status import FailureDetail, PluginSource, VersionStatus

_log = logging.getLogger(__name__)

MAX_OUTCOMES_FAILED = 10
"""Calls of `on_request_complete` that fail in a row: each costs the instance, and what it knows."""

FITS_TO_RETURN = 100
"""Calls in a row within the inline budget, after which a plugin decides on the event loop again."""


class PluginVersion:
    """See the module. Its state and its record belong to the event loop's thread.

    A decision is taken on the event loop within `inline_budget_ms`. One that overruns it is taken
    again in the offload lane, within `max_execution_time_ms`, and so are those after it. The
    setting `lane` can have all of them taken there.

    Attributes:
        id: unlike that of any other version of the plugin.
        config: its settings.
        source: where it came from.
        digest: SHA-256 of its module, hexadecimal.
        needs: see `Policy.needs`.
        decisions: how many it took.
        failures: calls that failed, by kind: nearly all were decisions.
        last_failure: the last of these.
        quarantine: whether it is asked.
        self_test: how it did when it was tried out.
        on_failure: told of each failed decision.
    """

    def __init__(self, sandbox: Sandbox, source: PluginSource, id: str) -> None:
        """Instantiate the plugin and try it out. Raises DecisionError where it fails."""
        config, module = sandbox.config, sandbox.module
        manifest = module.manifest
        self.id = id
        self.config = config
        self.source = source
        self.digest = module.digest
        # The contract gives the body's model, session and length to a plugin that does not decline.
        body = {"body"} if manifest.reads_body else set[str]()
        self.needs = (manifest.needs & KNOWN_NEEDS) | body
        self.decisions = 0
        self.failures: Counter[FailureKind] = Counter()
        self.last_failure: FailureDetail | None = None
        self.quarantine = Quarantine()
        self._outcomes_failed = 0  # in a row
        self.on_failure: Callable[[PluginVersion, DecisionError], None] | None = None
        self._name = config.name
        self._loaded_at_ms = time.time_ns() // 1_000_000
        self._sandbox = sandbox
        self._guest = Guest(sandbox)
        self._reads_body = manifest.reads_body
        self._last_now_ms = 0
        self._limit_ms = config.max_execution_time_ms
        self._inline_ms = min(config.inline_budget_ms, self._limit_ms)
        self._lane = OffloadLane(self._name)
        self._stays_offloaded = module.decides_aside(config.lane)
        self.offloaded = self._stays_offloaded
        self._pinned = self._retired = False
        self._fits = 0
        self.self_test = self._guest.try_out(self._limit_ms)
        self._came_late()
        self._guest.start(self._limit_ms)

    # ---- decisions

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Decide on this thread, within the whole limit. Raises DecisionError."""
        probe = not self.quarantine.asked and self._admit(request)
        try:
            index = self._guest.decide(workers, request, self._limit_ms)
        except DecisionError as error:
            self._failed(error, request, probe=probe)
            raise
        if probe or not self.quarantine.calm or self._guest.late_failure is not None:
            self._succeeded(request, probe=probe)
        else:
            self.decisions += 1
            self._last_now_ms = request.now_ms
        return index

    def choose(self, workers: WorkerView, request: RequestView) -> int | PendingChoice | None:
        """Decide on this thread, if that takes little time. Raises DecisionError."""
        probe = not self.quarantine.asked and self._admit(request)
        if self.offloaded:
            return self._offload(workers, request, probe=probe)
        try:
            index = self._guest.decide(workers, request, self._inline_ms)
        except DecisionError as error:
            if error.kind == "timeout" and self._inline_ms < self._limit_ms:
                self._leave_loop()
                return self._offload(workers, request, probe=probe)
            self._failed(error, request, probe=probe)
            raise
        if probe or not self.quarantine.calm or self._guest.late_failure is not None:
            self._succeeded(request, probe=probe)
        else:  # as nearly always: the same in short
            self.decisions += 1
            self._last_now_ms = request.now_ms
        return index

    def _admit(self, request: RequestView) -> bool:
        """Let a request through as the probe; raises DecisionError where it is not to be."""
        if not self.quarantine.admits(request.now_ms, partial(self._content, request)):
            raise DecisionError(self._name, "quarantined", "it has failed too often of late")
        return True

    def _content(self, request: RequestView) -> int | None:
        """What the plugin reads of the request, as a number; None where that is not the body."""
        return request.fingerprint if self._reads_body else None

    # ---- the offload lane

    def keep_offloaded(self, pinned: bool) -> None:
        """Whether it decides in the offload lane however quick it is."""
        self._pinned = pinned
        if pinned:
            self.offloaded = True
        else:
            self._left_lane()

    def offload(self, workers: WorkerView, request: RequestView, most: int) -> PendingChoice | None:
        """Decide in the offload lane; None where as many as `most` decisions wait already.

        Raises DecisionError.
        """
        assert self.offloaded, "an instance has one user at a time"
        if self._lane.waiting >= most:
            return None
        probe = not self.quarantine.asked and self._admit(request)
        return self._offload(workers, request, probe=probe)

    def _offload(self, workers: WorkerView, request: RequestView, *, probe: bool) -> PendingChoice:
        pending = _OffloadedChoice(self, workers, request, probe=probe)
        at_once = self._pinned  # in shadow, it is asked what the policy in use was asked just now
        try:
            pending.job = self._lane.submit(
                pending.prepare, pending.arrived, self._limit_ms / 1000, at_once=at_once
            )
        except DecisionError as error:
            if probe:
                self.quarantine.abandoned()
            else:
                self._failed(error, request, probe=False)
            raise
        return pending

    def _arrived(
        self, pending: "_OffloadedChoice", result: TimedAnswer | DecisionError | None
    ) -> None:
        """A decision has come out of the lane."""
        fits = isinstance(result, tuple) and result[1] <= self._inline_ms
        self._fits = self._fits + 1 if fits else 0
        if isinstance(result, tuple):
            pending.elapsed_ns = int(result[1] * 1e6)
            if result[2] is not None:
                self._count(result[2])
        self._left_lane()
        if pending.then is None:
            return
        choice = self._judged(result, pending.workers)
        if isinstance(choice, DecisionError):
            self._failed(choice, pending.request, probe=pending.is_probe)
        else:
            self._succeeded(pending.request, probe=pending.is_probe)
        pending.settle(choice)

    def _judged(self, result: TimedAnswer | DecisionError | None, workers: WorkerView) -> Choice:
        """What has come out of the lane. An error is not raised: its frames would hold it."""
        if result is None:
            return DecisionError(
                self._name, "timeout", f"it waited {self._limit_ms:,} ms for its thread"
            )
        if isinstance(result, DecisionError):
            return result
        try:
            return self._guest.contract.judge(result[0], workers)
        except DecisionError as error:
            return error.with_traceback(None)

    def _leave_loop(self) -> None:
        self.offloaded, self._fits = True, 0
        _log.warning(
            "plugin %s takes longer than inline_budget_ms (%d): it decides on a thread of its own",
            self._name,
            self._inline_ms,
        )

    def _left_lane(self) -> None:
        """A call has come out of it."""
        if self._lane.waiting:
            return
        if self._retired:
            self._guest.instance = None
        elif (
            self.offloaded
            and self._fits >= FITS_TO_RETURN
            and not (self._pinned or self._stays_offloaded)
        ):
            self.offloaded = False
            _log.info("plugin %s decides on the event loop again", self._name)

    # ---- outcomes

    def on_request_complete(self, outcome: Outcome) -> None:
        """Tell the plugin, where it exports the function; its failure fails nothing else."""
        guest = self._guest
        if not guest.wants_outcomes or not self.quarantine.asked:
            return
        report = partial(guest.report, guest.encode_outcome(outcome), self._last_now_ms)
        if not self.offloaded:
            try:
                report(self._inline_ms)
            except DecisionError as error:
                if error.kind != "timeout" or self._inline_ms == self._limit_ms:
                    self._learnt(error)
                    return
                self._leave_loop()
            else:
                self._learnt(None)
                return
        try:
            report = partial(report, self._limit_ms)
            self._lane.submit(lambda: report, self._reported, self._limit_ms / 1000)
        except DecisionError as error:
            self._count(error)

    def _learnt(self, failure: DecisionError | None) -> None:
        """It has been told how a request ended; one that always fails is told no more."""
        if failure is None:
            self._outcomes_failed = 0
            return
        self._count(failure)
        self._outcomes_failed += 1
        if self._outcomes_failed >= MAX_OUTCOMES_FAILED:
            self._guest.wants_outcomes = False
            _log.warning("plugin %s is not told any more how requests end", self._name)

    def _reported(self, result: float | DecisionError | None) -> None:
        if result is not None:
            self._learnt(result if isinstance(result, DecisionError) else None)
        if not isinstance(result, float) or result > self._inline_ms:
            self._fits = 0
        self._left_lane()

    # ---- the record

    def _succeeded(self, request: RequestView, *, probe: bool) -> None:
        self.decisions += 1
        self._last_now_ms = request.now_ms
        if self._guest.late_failure is not None:
            self._came_late()
        if self.quarantine.succeeded(request.now_ms, probe=probe) and self.quarantine.is_told:
            _log.info("plugin %s is asked again: its probe was good", self._name)

    def _failed(self, error: DecisionError, request: RequestView, *, probe: bool) -> None:
        self._came_late()
        self._count(error)
        content = self._content(request)
        began = self.quarantine.failed(request.now_ms, content, error.why, probe=probe)
        if began and self.quarantine.is_told:
            status = self.quarantine.status(request.now_ms)
            _log.warning(
                "plugin %s is in quarantine for %g s, its fallback policy %s decides: %s",
                self._name,
                status.left_ms / 1000,
                self.config.fallback,
                status.reason,
            )
        if self.on_failure is not None:
            self.on_failure(self, error)

    def _came_late(self) -> None:
        """What failed after a decision on the event loop costs no request, but the loop's time."""
        failure, self._guest.late_failure = self._guest.late_failure, None
        if failure is None:
            return
        self._count(failure)
        if failure.kind == "timeout" and self._inline_ms < self._limit_ms and not self.offloaded:
            self._leave_loop()

    def _count(self, error: DecisionError) -> None:
        """Count a failure; the log gets the 1st, 10th, 100th … of a kind, not each."""
        self.failures[error.kind] = count = self.failures[error.kind] + 1
        self.last_failure = FailureDetail.of(error)  # an error that is kept keeps its frames
        if str(count).strip("0") == "1":
            _log.warning("%s (failure %d of this kind)%s", str(error), count, error.where)

    # ---- coming and going

    @property
    def wasm(self) -> bytes:
        """Its module."""
        return self._sandbox.module.wasm

    def take_state(self, before: "PluginVersion") -> None:
        """Go on from the state of another version."""
        self._guest.contract.state = before._guest.contract.state

    def retire(self) -> None:
        """It is asked no more; what is under way ends as it is, and then its instance goes."""
        self._retired = True
        self._guest.contract.close()
        self._lane.close()
        self._left_lane()

    def revive(self) -> None:
        """It is asked again, as one that has never failed."""
        self._retired = False
        self._outcomes_failed = 0
        self._guest.wants_outcomes = "on_request_complete" in self._sandbox.module.exports
        self.quarantine = Quarantine()

    def __str__(self) -> str:
        """For the log."""
        said = self._sandbox.module.manifest.version
        named = "" if said is None else f"{said}, "
        return f"version {self.id} ({named}{self.source.path or 'uploaded'}, sha256 {self.digest})"

    def status(self) -> VersionStatus:
        """What is shown of it."""
        instance = self._guest.instance
        return VersionStatus(
            id=self.id,
            sha256=self.digest,
            plugin_version=self._sandbox.module.manifest.version,
            abi=self._sandbox.module.abi,
            source=self.source,
            loaded_at_ms=self._loaded_at_ms,
            settings=self.config.settings(),
            decisions=self.decisions,
            failures={str(kind): number for kind, number in self.failures.items()},
            instances=self._guest.instances,
            memory_bytes=0 if instance is None else instance.memory_bytes,
            state_bytes=self._guest.contract.state.size,
        )

    @property
    def waiting(self) -> int:
        """Decisions in the offload lane."""
        return self._lane.waiting


class _OffloadedChoice(PendingChoice):
    """A choice that is being made in the offload lane."""

    __slots__ = ("_probe_of", "_version", "job", "request", "workers")

    def __init__(
        self, version: PluginVersion, workers: WorkerView, request: RequestView, *, probe: bool
    ) -> None:
        super().__init__()
        self._version = version
        self._probe_of = version.quarantine if probe else None
        self.workers = workers
        self.request = request
        self.job: Job[TimedAnswer] | None = None

    @property
    def is_probe(self) -> bool:
        """Whether the quarantine waits for it; the version may have got another one meanwhile."""
        return self._probe_of is self._version.quarantine

    def prepare(self) -> Callable[[], TimedAnswer]:
        """What takes it, by what is known at this moment."""
        guest, limit_ms, asked = self._version._guest, self._version._limit_ms, self.request
        payload = guest.contract.encode(self.workers, asked)
        return partial(guest.answer, payload, asked.now_ms, asked.entropy, limit_ms)

    def arrived(self, result: TimedAnswer | DecisionError | None) -> None:
        self.job = None  # it knows this choice: a cycle
        self._version._arrived(self, result)

    def give_up(self) -> None:
        super().give_up()
        if self.job is not None:
            self.job.dropped = True
        if self.is_probe:
            self._version.quarantine.abandoned()
