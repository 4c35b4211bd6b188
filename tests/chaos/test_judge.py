"""The judge of the chaos run finds what was planted, and nothing where there is nothing."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sgl_router.gateway.upload import REPLAY_BYTES
from tests.chaos.clients import Ask
from tests.chaos.fleet import Timeline
from tests.chaos.judge import SETTLE_SECS, Line, Verdict, judge, read_logs


@dataclass
class Engine:
    """An engine that served all the time, and never hung, unless told otherwise."""

    url: str
    serving: Timeline = field(default_factory=lambda: Timeline([(0.0, True)]))
    hung: Timeline = field(default_factory=Timeline)


ONE, TWO = "http://one", "http://two"
ASK = Ask("a", 60, 100.0, 101.0, "answered", frozenset({"1"}))
DOWN = Timeline([(0.0, True), (100.5, False)])
LATE = Timeline([(0.0, False), (100.0 - SETTLE_SECS + 0.5, True)])


def lines(*events: str) -> list[Line]:
    """`EVENT GENERATION` of the request `a`, on the first engine, in this order."""
    return [
        Line(ONE, event.split()[0], "a", event.split()[1], 100.0 + number / 10)
        for number, event in enumerate(events)
    ]


def judged(
    ask: Ask, *events: str, one: Timeline | None = None, two: Timeline | None = None
) -> Verdict:
    always = Timeline([(0.0, True)])
    engines = [Engine(ONE, one or always), Engine(TWO, two or always)]
    return judge([ask], lines(*events), engines, {"load of workers": 0})


def test_an_answer() -> None:
    verdict = judged(ASK, "begun 1", "done 1", "spoken 1")
    assert verdict.violations == []
    assert verdict.outcomes == {"answered": 1}
    assert verdict.covered == 1
    assert "PASSED" in str(verdict)


@pytest.mark.parametrize(
    ("generations", "events"),
    [
        (set(), ["begun 1", "done 1", "spoken 1"]),
        ({"1", "2"}, ["begun 1", "done 1", "begun 2", "done 2", "spoken 2"]),
        ({"1"}, ["begun 1", "spoken 1"]),
        ({"2"}, ["begun 1", "done 1", "spoken 1"]),
    ],
    ids=["of none", "of two", "not complete", "of nobody"],
)
def test_an_answer_that_is_not_one_generation(generations: set[str], events: list[str]) -> None:
    verdict = judged(replace(ASK, generations=frozenset(generations)), *events)
    assert len(verdict.violations) == 1
    assert "FAILED" in str(verdict)


@pytest.mark.parametrize("again", ["begun 2", "begun 2 done 2 spoken 2"])
def test_a_request_that_is_sent_again_after_a_byte(again: str) -> None:
    words = again.split()
    repeated = [" ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
    left = replace(ASK, outcome="left", generations=frozenset())
    verdict = judged(left, "begun 1", "spoken 1", "done 1", *repeated)
    assert any("sent again" in violation for violation in verdict.violations)
    assert any("served twice" in violation for violation in verdict.violations) == (len(words) > 2)


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (["begun 1"], "killed before it sent a byte"),
        (["begun 1", "dropped 1"], "closed without a byte"),
        (["begun 1", "done 1"], "generated to its end, but killed before it sent a byte"),
    ],
)
def test_a_request_that_is_begun_on_again(before: list[str], why: str) -> None:
    again = replace(ASK, generations=frozenset({"2"}))
    verdict = judged(again, *before, "begun 2", "done 2", "spoken 2")
    assert verdict.violations == []
    assert verdict.begun_again == {why: 1}


def test_a_request_that_is_taken_from_an_engine_that_lives() -> None:
    again = replace(ASK, generations=frozenset({"2"}))
    verdict = judged(again, "begun 1", "gone 1", "begun 2", "done 2", "spoken 2")
    assert any("taken from an engine" in violation for violation in verdict.violations)


def test_a_request_that_goes_through_all_engines() -> None:
    again = replace(ASK, generations=frozenset({"3"}))
    one = lines("begun 1", "begun 2", "begun 3", "done 3", "spoken 3")
    several = [
        replace(line, engine=f"http://{min(int(line.generation), most)}")
        for most in (2, 3)
        for line in one
    ]
    for noted, wrong in ((one, True), (several[:5], False), (several[5:], True)):
        verdict = judge([again], noted, [Engine(ONE)], {})
        assert any("begun on by" in violation for violation in verdict.violations) == wrong


FAILURES = [
    *("error no_available_workers", "error call_upstream_connect_error"),
    *("error call_upstream_timeout", "error call_upstream_protocol_error"),
    *("event call_upstream_protocol_error", "cut", "declined"),
]


@pytest.mark.parametrize("outcome", FAILURES)
def test_a_failure_that_nothing_excuses(outcome: str) -> None:
    for one, two in ((None, None), (DOWN, None), (None, LATE)):
        verdict = judged(replace(ASK, outcome=outcome), one=one, two=two)
        assert len(verdict.violations) == 1 and verdict.violations[0].startswith("lost")
        assert "FAILED" in str(verdict)


@pytest.mark.parametrize("outcome", FAILURES)
def test_no_engine_served_all_the_time(outcome: str) -> None:
    verdict = judged(replace(ASK, outcome=outcome), one=DOWN, two=LATE)
    assert verdict.violations == []
    assert verdict.allowed.total() == 1
    assert verdict.covered == 0


@pytest.mark.parametrize("outcome", FAILURES[:-1])
def test_an_engine_had_begun(outcome: str) -> None:
    verdict = judged(replace(ASK, outcome=outcome), "begun 1", one=DOWN)
    assert verdict.violations == []
    assert verdict.allowed == {f"{outcome}: an engine had begun on it": 1}


@pytest.mark.parametrize("outcome", ["silence", "stuck", "wrong: the answer of b", ""])
def test_what_nothing_excuses(outcome: str) -> None:
    verdict = judged(replace(ASK, outcome=outcome), "begun 1", one=DOWN, two=DOWN)
    assert len(verdict.violations) == 1


def test_the_router_was_full() -> None:
    for code in ("admission_queue_full", "admission_queue_timeout"):
        assert judged(replace(ASK, outcome=f"error {code}")).violations == []


def test_declined_by_all_that_could_have_served_it() -> None:
    declined = replace(ASK, outcome="declined")
    assert judged(declined, "declined 1").violations, "the other one could have"
    assert judged(declined, "declined 1", two=LATE).violations == []
    large = replace(declined, body_bytes=REPLAY_BYTES + 1)
    assert judged(large, "declined 1").violations == []
    assert judged(large).violations, "nobody has declined it"


def test_hung() -> None:
    hung = Engine(ONE, DOWN, Timeline([(100.5, True)]))
    other = Engine(TWO)
    timeout = replace(ASK, outcome="error call_upstream_timeout")
    assert judge([timeout], [], [hung, other], {}).violations == []
    assert judge([timeout], [], [Engine(ONE, DOWN), other], {}).violations


def test_closed_without_a_byte_and_without_being_read() -> None:
    message = "http://one closed the connection before its answer's end"
    ask = replace(ASK, outcome="error call_upstream_connect_error", message=message)
    third = Engine("http://three")
    for gone, large, allowed in (
        *((1, False, False), (1, True, True), (2, False, True)),
        *((0, True, False), (0, False, False)),
    ):
        engines = [Engine(ONE, DOWN if gone > 0 else third.serving)]
        engines.append(Engine(TWO, DOWN if gone > 1 else third.serving))
        asked = replace(ask, body_bytes=REPLAY_BYTES + 1) if large else ask
        verdict = judge([asked], [], [*engines, third], {})
        assert (not verdict.violations) == allowed, (gone, large)


def test_what_is_left_is_a_violation() -> None:
    verdict = judge([], [], [], {"load of workers": 1, "tasks": -1, "descriptors": 0})
    assert verdict.violations == ["load of workers: 1 left", "tasks: -1 left"]


def test_timelines() -> None:
    timeline = Timeline([(1.0, True), (2.0, False), (3.0, True)])
    assert timeline.throughout(1.2, 1.8)
    assert timeline.throughout(3.0, 9.0)
    for since, until in ((0.5, 1.5), (1.5, 2.5), (2.2, 2.8), (1.5, 3.5), (2.5, 3.5), (0.0, 0.5)):
        assert not timeline.throughout(since, until)
    assert all(timeline.ever(*span) for span in ((0.5, 1.5), (1.5, 2.5), (2.5, 3.5), (4, 5)))
    assert not any(timeline.ever(*span) for span in ((0.0, 0.9), (2.1, 2.9)))


def test_logs_are_read(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("begun a 1 2.5\ndone a 1 4.5\n", "ascii")
    (tmp_path / "two").write_text("begun b 2 3.5\n", "ascii")
    read = read_logs({ONE: tmp_path / "one", TWO: tmp_path / "two"})
    assert read == [
        Line(ONE, "begun", "a", "1", 2.5),
        Line(TWO, "begun", "b", "2", 3.5),
        Line(ONE, "done", "a", "1", 4.5),
    ]
