"""Quarantine: any sequence of decisions, also overlapping, against a naive reading of its rules."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from sgl_router.wasm.quarantine import (
    FAILURES_IN_ROW,
    FIRST_OPEN_MS,
    FORGET_MS,
    MAX_OPEN_MS,
    RATE_FAILURES,
    RATE_WINDOW,
)
from tests.wasm.test_quarantine import DAY_MS, NOW_MS, Bench


class Naive:
    """The same rules, read from all that has happened since it was last closed."""

    def __init__(self) -> None:
        self.state = "closed"
        self.history: list[tuple[bool, int | None]] = []
        self.suspects: list[int | None] = []
        self.length = self.until = self.closed_at = self.times = 0
        self.early = False

    @staticmethod
    def different(contents: list[int | None]) -> int:
        return contents.count(None) + len({c for c in contents if c is not None})

    def admits(self, now: int, content: int | None) -> bool:
        if self.state == "closed":
            return True
        if self.state == "half_open":
            return False
        self.until = min(self.until, now + self.length)
        self.early = now < self.until
        if self.early and (
            content is None
            or content in self.suspects
            or self.different(self.suspects) >= FAILURES_IN_ROW
        ):
            return False
        self.state = "half_open"
        return True

    def told(self, now: int, ok: bool, content: int | None, probe: bool) -> bool:
        if self.state == "closed":
            self.closed_at = min(self.closed_at, now)
            if now - self.closed_at >= FORGET_MS:
                self.length = 0
        elif not probe:
            return False
        self.history.append((ok, content))
        if probe and ok:
            self.state, self.closed_at = "closed", now
            self.history = [(True, None)]
            return True
        return not ok and self.opens(now, content, probe)

    def opens(self, now: int, content: int | None, probe: bool) -> bool:
        window = [c for ok, c in self.history[-RATE_WINDOW:] if not ok]
        if probe:
            self.suspects.append(content)
        elif self.different(window) >= RATE_FAILURES:
            self.suspects = window
        elif self.in_row() >= FAILURES_IN_ROW:
            self.suspects = [c for _, c in self.history[-FAILURES_IN_ROW:]]
        else:
            return False
        self.times += not probe
        if not (probe and self.early):
            self.length = min(2 * self.length or FIRST_OPEN_MS, MAX_OPEN_MS)
        self.state, self.until = "open", now + self.length
        return True

    def in_row(self) -> int:
        oks = [ok for ok, _ in self.history]
        return len(oks) if True not in oks else oks[::-1].index(True)


CONTENTS = st.none() | st.integers(0, 4) | st.integers(0, 10**6)


class QuarantineMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench()
        self.naive = Naive()
        self.naive.closed_at = NOW_MS
        self.running: list[tuple[bool, int | None]] = []

    @rule(passes_ms=st.sampled_from([0, 1, 500, 999, 1_000, 2_000, 59_999, 60_000, -1, -DAY_MS]))
    def wait(self, passes_ms: int) -> None:
        self.bench.now += passes_ms

    @precondition(lambda self: self.bench.state() == "open")
    @rule()
    def wait_out(self) -> None:
        self.bench.wait_out()

    @rule(content=CONTENTS)
    def ask(self, content: int | None) -> None:
        probe = not self.bench.quarantine.asked
        admitted = self.bench.admits(content)
        assert admitted is self.naive.admits(self.bench.now, content)
        if admitted:
            self.running.append((probe, content))
        self.compare()

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 9), ok=st.booleans())
    def finish(self, place: int, ok: bool) -> None:
        probe, content = self.running.pop(place % len(self.running))
        quarantine, now = self.bench.quarantine, self.bench.now
        if ok:
            changed = quarantine.succeeded(now, probe=probe)
        else:
            changed = quarantine.failed(now, content, "trap", probe=probe)
        assert changed is self.naive.told(now, ok, content, probe)
        self.compare()

    @precondition(lambda self: self.running)
    @rule(place=st.integers(0, 9))
    def give_up(self, place: int) -> None:
        probe, _ = self.running.pop(place % len(self.running))
        if probe:
            self.bench.quarantine.abandoned()
            self.naive.state = "open"
        self.compare()

    @rule(
        pattern=st.lists(st.tuples(st.booleans(), CONTENTS), min_size=1, max_size=8),
        times=st.integers(1, 40),
        fresh=st.booleans(),
    )
    def burst(self, pattern: list[tuple[bool, int | None]], times: int, fresh: bool) -> None:
        """Requests one after the other; `fresh`: each of a content of its own."""
        for turn in range(times):
            for ok, content in pattern:
                before = len(self.running)
                self.ask(None if content is None else content + fresh * turn * 10**7)
                if len(self.running) > before:
                    self.finish(before, ok)

    def compare(self) -> None:
        status = self.bench.quarantine.status(self.bench.now)
        naive, now = self.naive, self.bench.now
        assert (status.state, status.times) == (naive.state, naive.times)
        assert self.bench.quarantine.asked is (naive.state == "closed")
        assert status.failures_in_row == naive.in_row()
        if naive.state == "open":
            assert status.left_ms == max(min(naive.until - now, naive.length), 0)
        assert sum(probe for probe, _ in self.running) == (naive.state == "half_open")


QuarantineMachine.TestCase.settings = settings(deadline=None, stateful_step_count=60)
TestQuarantineMachine = QuarantineMachine.TestCase
