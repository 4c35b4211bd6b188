"""Numbers that grow: what a finished request is added to, in place of the client library's objects.

They are plain so that adding costs little; `exposition.py` turns them into the library's families
when somebody asks.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sgl_router.telemetry.catalogue import OTHER

MAX_VALUES = 64
"""Of one label whose values this package does not know beforehand; the rest are `OTHER`."""


class Count:
    """A number of things."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0


class Histogram:
    """How many values were how large.

    Attributes:
        counts: one for each bound, of the values above the bound before it and up to it; then one
            of those above all of them.
        total: the sum of the values, in their unit.
    """

    __slots__ = ("counts", "total")

    def __init__(self, bounds: int) -> None:
        """`bounds` is how many there are."""
        self.counts = [0] * (bounds + 1)
        self.total = 0.0

    def add(self, values: Iterable[float], bounds: Sequence[float]) -> None:
        """Add values; `bounds` are in their unit, ascending, as many as there are."""
        ordered = sorted(values)
        below = 0
        for place, bound in enumerate(bounds):
            up_to = bisect_right(ordered, bound)
            self.counts[place] += up_to - below
            below = up_to
        self.counts[-1] += len(ordered) - below
        self.total += sum(ordered)


class Tally:
    """Counts by a label's value; values beyond the first `MAX_VALUES` count as `OTHER`.

    Attributes:
        counts: by value.
    """

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, value: str) -> None:
        if value not in self.counts and len(self.counts) >= MAX_VALUES:
            value = OTHER
        self.counts[value] = self.counts.get(value, 0) + 1


@dataclass(frozen=True, slots=True)
class _Read:
    run: object
    number: int
    total: int


class RunningTotals:
    """Adds up numbers that others count and that begin at 0 again, such as those of one version.

    They are known as far as they are read: what a number has grown between the last reading and
    its beginning again is lost.
    """

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: dict[tuple[str, ...], _Read] = {}

    def update(
        self, readings: Iterable[tuple[tuple[str, ...], object, int]]
    ) -> list[tuple[tuple[str, ...], int]]:
        """The totals by label values, after the numbers were read again.

        Args:
            readings: label values, what the number is counted of, and the number. It has begun at 0
                again where it is counted of something else than at the last reading, or is less.
                Label values that are not among them are forgotten.
        """
        self._last = {labels: self._read(labels, run, number) for labels, run, number in readings}
        return [(labels, read.total) for labels, read in self._last.items()]

    def _read(self, labels: tuple[str, ...], run: object, number: int) -> _Read:
        last = self._last.get(labels)
        if last is None:
            return _Read(run, number, number)
        known = last.number if last.run == run and last.number <= number else 0
        return _Read(run, number, last.total + number - known)


def scaled(bounds: Sequence[float], per_second: int) -> tuple[float, ...]:
    """Bounds in seconds as bounds in a smaller unit, of which `per_second` make a second."""
    # Rounded: 1e-6 s must be the 1,000 ns that it is written for, or a value on it would be above.
    return tuple(round(bound * per_second, 6) for bound in bounds)
