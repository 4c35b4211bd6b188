"""What a chaos run must not have done, and what it had to: from the clients' and engines' notes.

A request may fail only where its engine had begun on it, or could not be told whether it had, or
where there was no engine that could have served it; and none is generated twice, but for one whose
first engine was gone before it had sent a byte.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from sgl_router.gateway.upload import REPLAY_BYTES
from tests.chaos.clients import Ask
from tests.chaos.fleet import Timeline

SETTLE_SECS = 6.0
"""An engine that has served for as long is known to: its checks have succeeded, its breaker has
closed, also on a machine that is busy with other things."""

MOST_ENGINES = 2
"""That begin on one request: one that is closed on without a byte is given to one more worker."""

MOST_ON_ONE = 2
"""Times that one engine begins on it: a kept connection that closes just as it is used again is
replaced."""


CLOSED = "closed the connection"
"""In the router's message, where an engine was connected and sent nothing."""


class Engine(Protocol):
    """What is known of an engine, besides what it wrote down itself."""

    @property
    def url(self) -> str: ...
    @property
    def serving(self) -> Timeline: ...
    @property
    def hung(self) -> Timeline: ...


@dataclass(frozen=True)
class Line:
    """A line of an engine's log."""

    engine: str
    event: str
    id: str
    generation: str
    at: float


@dataclass
class Verdict:
    """What is found.

    Attributes:
        outcomes: how often each came.
        allowed: failures, by why they are.
        begun_again: requests begun on again, by what had become of the generation before.
        covered: requests that some engine could have served from the first moment to the last.
        violations: what must not be, a sentence each.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    allowed: Counter[str] = field(default_factory=Counter)
    begun_again: Counter[str] = field(default_factory=Counter)
    covered: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        parts = [
            f"{sum(self.outcomes.values()):,} requests; {self.covered:,} of them while some engine "
            "was there all the time"
        ]
        for title, counter in (
            ("", self.outcomes),
            ("failed, as they may: ", self.allowed),
            ("begun on again: ", self.begun_again),
        ):
            parts += [f"  {title}{what}: {number:,}" for what, number in counter.most_common()]
        parts += [f"VIOLATION: {violation}" for violation in self.violations[:50]]
        more = len(self.violations) - 50
        parts += [f"and {more:,} more violations"] if more > 0 else []
        parts.append("FAILED" if self.violations else "PASSED: nothing lost, nothing served twice")
        return "\n".join(parts)


def read_logs(logs: Mapping[str, Path]) -> list[Line]:
    """The lines of all engines, which are named by their URLs, in the order of time."""
    lines = []
    for engine, log in logs.items():
        for line in log.read_text("ascii").splitlines():
            event, id, generation, at = line.split()
            lines.append(Line(engine, event, id, generation, float(at)))
    return sorted(lines, key=lambda line: line.at)


def judge(
    asks: Sequence[Ask],
    lines: Sequence[Line],
    engines: Sequence[Engine],
    left: Mapping[str, int],
) -> Verdict:
    """Judge a run.

    Args:
        asks: what the clients saw.
        lines: what the engines wrote down.
        engines: when each of them served.
        left: what was left at the end, by name; all must be zero.
    """
    verdict = Verdict()
    by_id: dict[str, list[Line]] = defaultdict(list)
    for line in lines:
        by_id[line.id].append(line)
    for ask in asks:
        verdict.outcomes[ask.outcome] += 1
        noted = by_id.get(ask.id, [])
        steady = _steady(ask, engines)
        verdict.covered += bool(steady)
        if ask.outcome == "answered":
            _judge_answer(ask, noted, verdict)
        elif ask.outcome != "left":
            why = _why(ask, noted, engines, steady)
            if why is None:
                verdict.violations.append(f"lost: {_told(ask, noted)}")
            else:
                verdict.allowed[f"{ask.outcome}: {why}"] += 1
    for id, noted in by_id.items():
        _judge_repeats(id, noted, verdict)
    verdict.violations += [f"{name}: {count} left" for name, count in left.items() if count]
    return verdict


def _steady(ask: Ask, engines: Sequence[Engine]) -> list[Engine]:
    """Those that could have served it: each for long enough before, and until its end."""
    since = ask.began - SETTLE_SECS
    return [engine for engine in engines if engine.serving.throughout(since, ask.ended)]


def _why(
    ask: Ask, noted: Sequence[Line], engines: Sequence[Engine], steady: Sequence[Engine]
) -> str | None:
    """Why a request may have failed as it did, or None where it may not."""
    kind, _, code = ask.outcome.partition(" ")
    if kind not in ("error", "event", "cut", "declined"):
        return None  # no answer at all, an answer to somebody else, or one that never ends
    if code in ("admission_queue_full", "admission_queue_timeout"):
        return "the router was full"
    if kind == "declined":
        declined = {line.engine for line in noted if line.event == "declined"}
        if declined and ask.body_bytes > REPLAY_BYTES:
            return "an engine declined it, and it is too large to be sent again"
        steady = [engine for engine in steady if engine.url not in declined]
        return None if steady else "every engine that could have served it declined it"
    if any(line.event == "begun" for line in noted):
        return "an engine had begun on it"
    return _why_not_begun(ask, engines) if steady else "no engine served all the time"


def _why_not_begun(ask: Ask, engines: Sequence[Engine]) -> str | None:
    """Why it was not given to an engine that could have served it."""
    if ask.outcome == "error call_upstream_timeout":
        hung = any(engine.hung.ever(ask.began, ask.ended) for engine in engines)
        return "its engine hung" if hung else None
    if ask.outcome == "error call_upstream_connect_error" and CLOSED in ask.message:
        # It was not read, or not to its end: the router cannot know.
        gone = [e for e in engines if not e.serving.throughout(ask.began, ask.ended)]
        if len(gone) > 1:
            return "two engines closed on it without a byte"
        if gone and ask.body_bytes > REPLAY_BYTES:
            return "its engine closed, and it is too large to be sent again"
    return None


def _judge_answer(ask: Ask, noted: Sequence[Line], verdict: Verdict) -> None:
    """What a client took for its answer is one generation, and that to its end."""
    if len(ask.generations) != 1:
        verdict.violations.append(f"an answer of several generations: {_told(ask, noted)}")
    done = {line.generation for line in noted if line.event == "done"}
    if not ask.generations <= done:
        verdict.violations.append(f"an answer that no engine has given: {_told(ask, noted)}")


def _judge_repeats(id: str, noted: Sequence[Line], verdict: Verdict) -> None:
    """No generation follows one that has sent a byte, nor too many others."""
    begun = [line.generation for line in noted if line.event == "begun"]
    events = {name: {line.event for line in noted if line.generation == name} for name in begun}
    on = Counter(line.engine for line in noted if line.event == "begun")
    if len(on) > MOST_ENGINES or max(on.values(), default=0) > MOST_ON_ONE:
        verdict.violations.append(f"{id} was begun on by {dict(on)}: {events}")
    for generation in begun[:-1]:
        if "spoken" in events[generation]:
            verdict.violations.append(f"{id} was sent again after an answer's byte: {events}")
        elif "gone" in events[generation]:
            verdict.violations.append(f"{id} was taken from an engine and sent again: {events}")
        elif "done" in events[generation]:
            verdict.begun_again["generated to its end, but killed before it sent a byte"] += 1
        elif "dropped" in events[generation]:
            verdict.begun_again["closed without a byte"] += 1
        else:
            verdict.begun_again["killed before it sent a byte"] += 1
    done = [generation for generation in begun if "done" in events[generation]]
    if sum("spoken" in events[generation] for generation in done) > 1:
        verdict.violations.append(f"{id} was served twice: {events}")


def _told(ask: Ask, noted: Sequence[Line]) -> str:
    events = ", ".join(f"{line.event} {line.generation} at {line.at:.3f}" for line in noted)
    return (
        f"{ask.id} ({ask.body_bytes:,} bytes) {ask.outcome} from {ask.began:.3f} to "
        f"{ask.ended:.3f} {ask.message!r}; engines: {events or 'nothing'}"
    )
