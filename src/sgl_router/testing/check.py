"""What a conformance check is."""

from collections.abc import Callable
from dataclasses import dataclass

import orjson

from sgl_router.testing.answer import Answer
from sgl_router.testing.host import Host


class Failed(Exception):
    """A check is not passed."""


class NotForIt(Exception):
    """A check does not concern this plugin."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check.

    Attributes:
        name: of it.
        rule: what the ABI says, in a sentence.
        run: makes it, on a host that has just started its plugin. Raises Failed, NotForIt, or
            DecisionError where the plugin does not start again.
    """

    name: str
    rule: str
    run: Callable[[Host], None]


def decided(answer: Answer, what: str) -> Answer:
    """Raises Failed where it is no decision."""
    if answer.failure is not None:
        raise Failed(f"{what}: " + "\n".join(answer.failure.lines()))
    return answer


def as_json(value: object) -> str:
    """To compare and to show."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode("utf-8")
