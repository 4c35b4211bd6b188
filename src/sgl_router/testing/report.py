"""What came of the conformance checks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What came of one check.

    Attributes:
        name: of the check.
        rule: what the ABI says, in a sentence.
        outcome: `skipped`: it does not concern this plugin.
        detail: what was found instead, or why it is skipped; None where it passed.
    """

    name: str
    rule: str
    outcome: Literal["passed", "failed", "skipped"]
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all of them.

    Attributes:
        plugin: its name.
        abi: the contract that it keeps; None where it could not be loaded.
        results: of each check, in their order.
    """

    plugin: str
    abi: str | None
    results: Sequence[CheckResult]

    @property
    def failed(self) -> list[CheckResult]:
        """Those that it does not pass."""
        return [result for result in self.results if result.outcome == "failed"]

    @property
    def conforms(self) -> bool:
        return not self.failed

    def __str__(self) -> str:
        """A line for each check."""
        return "\n".join(
            f"{result.outcome:8}{result.name}" + (f": {result.detail}" if result.detail else "")
            for result in self.results
        )
