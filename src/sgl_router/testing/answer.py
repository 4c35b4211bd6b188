"""What a plugin answered, or how it failed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sgl_router.errors import DecisionError, FailureKind


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call failed.

    Attributes:
        kind: see `FailureKind`.
        detail: why, in a line.
        panic: what the guest's panic hook wrote, or None.
        output: the end of what it wrote to stdout and stderr during the call, or None.
        backtrace: names of the functions that were under way, the innermost first.
    """

    kind: FailureKind
    detail: str
    panic: str | None = None
    output: str | None = None
    backtrace: Sequence[str] = ()

    @classmethod
    def of(cls, error: DecisionError) -> "Failure":
        """What an error says."""
        words = error.words
        return cls(error.kind, error.detail, words.panic, words.output, words.backtrace)

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
class Answer:
    """What came of one decision.

    Attributes:
        selected_worker: an index into the workers; None: no worker, or a failure.
        state: the plugin's state after it; as it was before, where it failed.
        failure: None where it decided.
        late: what failed after it had decided, which costs the instance only; or None.
        elapsed_us: what it took, the host's part included, in microseconds.
        memory_bytes: of the guest's memory after it; 0 where the instance is gone.
    """

    selected_worker: int | None
    state: Mapping[str, Any]
    failure: Failure | None
    late: Failure | None
    elapsed_us: float
    memory_bytes: int

    @property
    def error(self) -> str | None:
        """What the plugin itself reported as its error, or None."""
        failure = self.failure
        return failure.detail if failure is not None and failure.kind == "plugin_error" else None

    def same_as(self, other: "Answer") -> bool:
        """Whether both say the same, however long they took."""
        mine = self.failure and (self.failure.kind, self.failure.detail)
        others = other.failure and (other.failure.kind, other.failure.detail)
        return (
            self.selected_worker == other.selected_worker
            and self.state == other.state
            and mine == others
        )

    def __str__(self) -> str:
        """In a line."""
        if self.failure is not None:
            return f"{self.failure.kind}: {self.failure.detail}"
        return "no worker" if self.selected_worker is None else f"worker {self.selected_worker}"
