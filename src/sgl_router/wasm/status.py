"""What is told of a plugin to whoever asks: values only, as the control plane shows them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sgl_router.core.worker import Role
from sgl_router.errors import DecisionError, FailureKind, LastWords

Lane = Literal["inline", "offload"]


@dataclass(frozen=True, slots=True)
class PluginSource:
    """Where a version came from.

    Attributes:
        kind: `file`, watched for changes; `upload`, kept in the store; `shipped`, with the package.
        path: the file, or None of an upload.
    """

    kind: Literal["file", "upload", "shipped"]
    path: str | None = None


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a plugin: its bytes with its settings.

    Attributes:
        id: unlike that of any other version of this plugin since the router started.
        sha256: of the module.
        plugin_version: what its manifest says, or None.
        abi: `json_v1`, `table_v1` or `component_v1`.
        source: where it came from.
        loaded_at_ms: Unix time.
        settings: `WasmPolicyConfig` without name and path.
        decisions: decisions that it took.
        failures: calls that failed, by kind: decisions that it failed to take, and what failed
            after a decision or in `on_request_complete`, which cost no request its decision.
        instances: how many instances it has had.
        memory_bytes: of its instance's memory, 0 where it has none at the moment.
        state_bytes: of its state as JSON.
    """

    id: str
    sha256: str
    plugin_version: str | None
    abi: str
    source: PluginSource
    loaded_at_ms: int
    settings: Mapping[str, Any]
    decisions: int
    failures: Mapping[str, int]
    instances: int
    memory_bytes: int
    state_bytes: int


@dataclass(frozen=True, slots=True)
class QuarantineStatus:
    """Whether a plugin is asked.

    Attributes:
        state: `closed`, it is; `open`, its fallback policy decides; `half_open`, one decision tries
            it out.
        failures_in_row: since its last success.
        times: how often it was quarantined.
        left_ms: until it is tried again; 0 unless `open`.
        reason: why it was quarantined last, or None.
    """

    state: Literal["closed", "open", "half_open"]
    failures_in_row: int
    times: int
    left_ms: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class FailureDetail:
    """A call that failed; what the plugin has said is cut and escaped.

    Attributes:
        kind: how it failed.
        detail: the cause, one line.
        panic: what the plugin said of it, one line, or None.
        output: the end of what it printed during the call, in lines, or None.
        backtrace: its functions that were under way, innermost first.
    """

    kind: FailureKind
    detail: str
    panic: str | None
    output: str | None
    backtrace: list[str]

    @classmethod
    def of(cls, error: DecisionError) -> "FailureDetail":
        words = error.words
        return cls(error.kind, error.detail, words.panic, words.output, list(words.backtrace))

    def line(self, plugin: str) -> str:
        """As the error says it."""
        return str(DecisionError(plugin, self.kind, self.detail, LastWords(self.panic)))

    def lines(self) -> list[str]:
        """All of it, the cause first."""
        said = [f"{self.kind}: {self.detail}"]
        if self.panic:
            said.append(f"it said: {self.panic}")
        if self.output:
            said += ["it wrote:", *(f"  {line}" for line in self.output.splitlines())]
        if self.backtrace:
            said += ["it was in, the innermost first:", *(f"  {f}" for f in self.backtrace)]
        return said


@dataclass(frozen=True, slots=True)
class PluginStatus:
    """A plugin, as it is listed.

    Attributes:
        name: its name, which is its policy's.
        current: the version that decides.
        previous: the version to which a rollback returns, or None.
        lane: where its decisions are taken: on the event loop, or on a thread of its own.
        waiting: calls that wait for that thread, the one under way included.
        quarantine: whether it is asked.
        in_use_as: the roles of workers that it decides about, and `shadow`.
        fallback: the policy that decides where it fails.
        stale: why the newest module or settings of its source are not in use; None: they are.
        last_failure: the last failed call, as one line, or None.
        swaps: how often another version took over.
        last_failure_detail: all that is known of the last failed call, or None.
    """

    name: str
    current: VersionStatus
    previous: VersionStatus | None
    lane: Lane
    waiting: int
    quarantine: QuarantineStatus
    fallback: str
    stale: str | None
    last_failure: str | None
    swaps: int
    in_use_as: list[str] = field(default_factory=list)
    last_failure_detail: FailureDetail | None = None


@dataclass(frozen=True, slots=True)
class SelfTest:
    """A decision between made-up workers, which a version takes before it is in use.

    Attributes:
        selected_worker: the index that it chose, or None.
        elapsed_us: how long the decision took, in microseconds.
        error: the error that the plugin reported itself, which is no failure; or None.
    """

    selected_worker: int | None
    elapsed_us: float
    error: str | None


@dataclass(frozen=True, slots=True)
class PutResult:
    """What came of a module that was sent, or read again.

    Attributes:
        status: `loaded`, there was none of that name; `replaced`, it decides from this moment on;
            `unchanged`, the module and the settings are those in use.
        plugin: as it is listed from this moment on.
        self_test: of the version in use.
    """

    status: Literal["loaded", "replaced", "unchanged"]
    plugin: PluginStatus
    self_test: SelfTest


@dataclass(frozen=True, slots=True)
class PolicyInUse:
    """Which policy places requests on the workers of one role.

    Attributes:
        role: of the workers.
        policy: its name.
        kind: `builtin`, or `plugin`.
        version: the plugin's current one, as in `VersionStatus.id`; None of a built-in policy.
        fallback: the policy that decides where it fails.
    """

    role: Role
    policy: str
    kind: Literal["builtin", "plugin"]
    version: str | None
    fallback: str
