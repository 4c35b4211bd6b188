"""What the router calls: it hands inputs to `choose` in policy.py, and its answers back. Nothing
here needs to be touched to write a policy."""

import io
import json
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import policy
from componentize_py_types import Err
from contract import Answer
from wit_world.exports.policy import Decision, Input, Outcome

_Given = TypeVar("_Given")
_Answer = TypeVar("_Answer")

MOST_FRAMES = 8
MOST_PRINTED = 300  # characters, of the end

# A plugin has no streams: to write to them would end it without a word.
_printed = sys.stdout = sys.stderr = io.StringIO()


class Policy:
    """The exports of wit/policy.wit. Each call is made on an object of its own."""

    config: ClassVar[dict[str, Any]] = {}
    failed_before: ClassVar[str | None] = None

    def init(self, config: str) -> None:
        Policy.config = json.loads(config)

    def select_worker(self, input: Input) -> Decision:
        if Policy.failed_before is not None:
            text, Policy.failed_before = Policy.failed_before, None
            raise Err(text)
        return _guarded(_decide, input)

    def on_request_complete(self, outcome: Outcome) -> None:
        """Has no result: what fails in it is told by the next decision."""
        if hasattr(policy, "on_request_complete"):
            try:
                _guarded(policy.on_request_complete, outcome)
            except Err as failure:
                Policy.failed_before = f"in on_request_complete: {failure.value}"


def _guarded(function: Callable[[_Given], _Answer], given: _Given) -> _Answer:
    """What a function returns; where it raises, an error that the router understands."""
    _forget_printed()
    try:
        return function(given)
    except (Exception, SystemExit) as error:
        raise Err(_told(error)) from error


def _decide(input: Input) -> Decision:
    given: Any = input
    given.config = Policy.config
    given.state = {} if input.state == "{}" else json.loads(input.state)
    return _decision(policy.choose(given))


def _decision(answer: Answer) -> Decision:
    index, state = answer if isinstance(answer, tuple) else (answer, None)
    if index is not None and (type(index) is not int or not 0 <= index < 1 << 32):
        raise TypeError(f"choose returned {index!r:.80}; expected the index of a worker, or None")
    return Decision(index, None if state is None else json.dumps(state))


def _told(error: BaseException) -> str:
    """An exception, where it was raised, innermost first, and what was printed before. The module
    `traceback` would look for the source's file, and a plugin has no files."""
    told = f"{type(error).__name__}: {error}"
    frames: list[str] = []
    at: TracebackType | None = error.__traceback__
    while at is not None:
        code = at.tb_frame.f_code
        if code.co_filename != __file__:
            frames.append(f"{code.co_filename.rpartition('/')[2]}:{at.tb_lineno} in {code.co_name}")
        at = at.tb_next
    if frames:
        told += f" ({', from '.join(frames[: -MOST_FRAMES - 1 : -1])})"
    if printed := _printed.getvalue():
        told += f", printed: {printed[-MOST_PRINTED:]}"
    return told


def _forget_printed() -> None:
    if _printed.tell():
        _printed.seek(0)
        _printed.truncate()
