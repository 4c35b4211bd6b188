"""Whether a plugin that fails is asked.

    CLOSED ── failures in a row, or too many of the last ──▶ OPEN ── a request to try ─▶ HALF_OPEN
      ▲                                                       ▲                             │ │
      │                                                       └─ the probe failed, or was ──┘ │
      │                                                          given up                     │
      └──────────────────────────── the probe was good ───────────────────────────────────────┘

A failed decision costs no request, for the fallback policy decides; it costs time, up to the
plugin's limit, on every request. A quarantine saves that. What fails may also be the request: a
prompt that makes a plugin trap, sent again and again by one client, must not switch the plugin off
for the others. So a failure is known by the request's content, and where only a few contents have
failed, a request with any other is tried at once; else the first whose time has come.

Decisions may overlap. What is told of one that began before a quarantine changes nothing while it
lasts: the probe's result counts, and no other.
"""

from collections import deque
from collections.abc import Callable
from typing import Literal

from sgl_router.wasm.status import QuarantineStatus

FAILURES_IN_ROW = 5
"""Open it: a plugin that works fails so often in a row by bad luck only where it fails often."""

RATE_WINDOW = 100
"""Decisions over which the rate of failures is taken: enough that 25 of them are no accident."""

RATE_FAILURES = 25
"""Of different contents in the window open it. A plugin that fails at every second call is caught,
one that fails at every tenth is of more use asked than not."""

FIRST_OPEN_MS = 1_000
"""How long the first quarantine lasts: short, for most causes are gone with the instance."""

MAX_OPEN_MS = 60_000
"""Where doubling ends, so that a plugin that works again is found out within a minute."""

FORGET_MS = 60_000
"""Closed for so long, its next quarantine is again as short as the first."""

_MAX_WHY = 500  # characters, of what its caller gives as the reason


class Quarantine:
    """The quarantine of one version of a plugin; belongs to one thread.

    All times are Unix milliseconds of a clock that may be set. Who decides does this:

        probe = not quarantine.asked
        if probe and not quarantine.admits(now_ms, content):
            ...  # the fallback decides
        ...  # then exactly one of, with the same `probe`: failed, succeeded; or abandoned

    Attributes:
        calm: whether nothing has failed of late, so that a success need not be told of.
        asked: whether every request asks the plugin, that is, whether it is closed; else `admits`
            says which do.
        times: how often it was quarantined, a failed probe not counted.
    """

    __slots__ = (
        "_calm_since_ms",
        "_decisions",
        "_early",
        "_failures",
        "_failures_in_row",
        "_length_ms",
        "_reason",
        "_state",
        "_suspects",
        "_until_ms",
        "asked",
        "calm",
        "times",
    )

    def __init__(self) -> None:
        self.asked = self.calm = True
        self.times = 0
        self._state: Literal["closed", "open", "half_open"] = "closed"
        self._failures_in_row = 0
        self._decisions = 0  # since it was closed
        self._failures: deque[tuple[int, int | None]] = deque()  # in the window; number, content
        self._suspects: list[int | None] = []  # different ones; see `_suspect`
        self._length_ms = 0  # of the last quarantine; 0: that is forgotten
        self._until_ms = 0
        self._early = False  # of the probe: before the time was over
        self._calm_since_ms = 0
        self._reason: str | None = None

    @property
    def is_told(self) -> bool:
        """Whether the last one is worth a line in the log: a client may be able to cause them.

        Each of the first, then every tenth, hundredth …
        """
        return self.times < 10 or str(self.times).strip("0") == "1"

    def admits(self, now_ms: int, content: Callable[[], int | None]) -> bool:
        """Whether the plugin is asked; where it was not closed, as its probe.

        Args:
            now_ms: the time of the request.
            content: returns a hash of what the plugin reads of the request, or None where it does
                not read the body; called only where it matters.
        """
        if self._state != "open":
            return self.asked
        left_ms = self._left_ms(now_ms)
        if left_ms > 0:
            self._until_ms = now_ms + left_ms  # another time only where the clock was set back
            if not self._is_unlike_suspects(content):
                return False
        self._early = left_ms > 0
        self._state = "half_open"
        return True

    def failed(self, now_ms: int, content: int | None, why: str, *, probe: bool = False) -> bool:
        """A decision failed; returns whether a quarantine has begun, or begun again.

        Args:
            now_ms: the time.
            content: see `admits`; without it, each failure counts as one of another content.
            why: one line.
            probe: whether the decision was let through by `admits` while not closed.
        """
        self.calm = False
        if probe:
            assert self._state == "half_open", "a probe is told of once"
            self._failures_in_row += 1
            self._suspect(content)
            if not self._early:  # else it says who fails, not that the time was too short
                self._double()
            self._open(now_ms, f"tried again and failed: {why:.{_MAX_WHY}}")
            return True
        if not self.asked:
            return False
        self._forget_doubling(now_ms)
        self._failures_in_row += 1
        self._decisions += 1
        self._failures.append((self._decisions, content))
        cause = self._cause()
        if cause is None:
            return False
        self.times += 1
        self._double()
        self._open(now_ms, f"{cause}, the last: {why:.{_MAX_WHY}}")
        return True

    def succeeded(self, now_ms: int, *, probe: bool = False) -> bool:
        """A decision was taken; returns whether that ended a quarantine."""
        if probe:
            assert self._state == "half_open", "a probe is told of once"
            self._close(now_ms)
            return True
        if self.asked:
            self._decisions += 1
            self._failures_in_row = 0
            failures = self._failures
            if failures and failures[0][0] <= self._decisions - RATE_WINDOW:
                failures.popleft()
            if self._length_ms:
                self._forget_doubling(now_ms)
            self.calm = not failures and not self._length_ms
        return False

    def abandoned(self) -> None:
        """The probe was given up before it had a result: another may take its place."""
        assert self._state == "half_open", "a probe is told of once"
        self._state = "open"

    def status(self, now_ms: int) -> QuarantineStatus:
        """What is shown of it."""
        return QuarantineStatus(
            state=self._state,
            failures_in_row=self._failures_in_row,
            times=self.times,
            left_ms=max(self._left_ms(now_ms), 0) if self._state == "open" else 0,
            reason=self._reason,
        )

    def _cause(self) -> str | None:
        """Why the failure that came last opens it, or None; finds who is suspected."""
        window = min(self._decisions, RATE_WINDOW)
        while self._failures[0][0] <= self._decisions - window:
            self._failures.popleft()
        contents = [content for _, content in self._failures]
        different = contents.count(None) + len({*contents} - {None})
        if different >= RATE_FAILURES:
            cause = f"{len(contents)} of the last {window} decisions failed"
        elif self._failures_in_row >= FAILURES_IN_ROW:
            cause = f"{self._failures_in_row} failures in a row"
            contents = contents[-FAILURES_IN_ROW:]
        else:
            return None
        for content in contents:
            self._suspect(content)
        return cause

    def _suspect(self, content: int | None) -> None:
        """As many different contents as open it speak against the plugin: more are not kept."""
        suspects = self._suspects
        if len(suspects) < FAILURES_IN_ROW and (content is None or content not in suspects):
            suspects.append(content)

    def _is_unlike_suspects(self, content: Callable[[], int | None]) -> bool:
        if len(self._suspects) >= FAILURES_IN_ROW:
            return False
        known = content()
        return known is not None and known not in self._suspects

    def _double(self) -> None:
        self._length_ms = min(max(2 * self._length_ms, FIRST_OPEN_MS), MAX_OPEN_MS)

    def _open(self, now_ms: int, reason: str) -> None:
        self._until_ms = now_ms + self._length_ms
        self._state, self.asked, self._reason = "open", False, reason

    def _close(self, now_ms: int) -> None:
        self._state, self.asked = "closed", True
        self._failures_in_row = self._decisions = 0
        self._failures.clear()
        self._suspects.clear()
        self._calm_since_ms = now_ms

    def _left_ms(self, now_ms: int) -> int:
        """Never more than its length, where the clock was set back."""
        return min(self._until_ms - now_ms, self._length_ms)

    def _forget_doubling(self, now_ms: int) -> None:
        """The quarantines before are forgotten once it has been closed for long."""
        if now_ms < self._calm_since_ms:  # the clock was set back
            self._calm_since_ms = now_ms
        elif now_ms - self._calm_since_ms >= FORGET_MS:
            self._length_ms = 0
