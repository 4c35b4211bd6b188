"""What a plugin answered, or how it failed."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_router.wasm.status import FailureDetail

Failure = FailureDetail
"""How a call failed."""


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
