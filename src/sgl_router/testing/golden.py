"""Golden decisions: inputs with the answer that a plugin has to give.

A file of them holds one: `description`, `input` (of the JSON ABI) and `output`, of which the keys
that are there are compared. `error: true` stands for any text. `state` is what the plugin has
returned: null leaves its state as it was, an object is merged into it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from sgl_router.errors import ConfigError, DecisionError
from sgl_router.testing.answer import Answer, Failure
from sgl_router.testing.case import DecisionCase, too_much
from sgl_router.testing.check import as_json
from sgl_router.testing.files import read_regular
from sgl_router.testing.host import Host
from sgl_router.wasm.abi.json_v1 import MAX_ERROR_CHARACTERS, PluginState
from sgl_router.wasm.printable import printable

MAX_FILE_BYTES = 4 * 1024 * 1024
RUNS = 2
"""Of each, on instances of their own: a decision is a function of its input."""

_PARTS = ("input", "output")
_OUTPUT = ("selected_worker", "state", "error")


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One golden decision.

    Attributes:
        name: its file's, without the ending.
        description: what it is about.
        case: what is asked.
        expected: some of `selected_worker`, `state` and `error`.
    """

    name: str
    description: str
    case: DecisionCase
    expected: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class GoldenResult:
    """What came of one.

    Attributes:
        golden: it.
        outcome: `skipped`: it says what this plugin's ABI has no words for.
        problems: what is not as expected, a sentence each; of one that is skipped, why.
        answer: the first one given, or None.
    """

    golden: GoldenCase
    outcome: Literal["passed", "failed", "skipped"]
    problems: Sequence[str] = ()
    answer: Answer | None = None


def load_golden(folder: Path) -> list[GoldenCase]:
    """All `*.json` of a folder, by name; none where there is no such folder.

    Raises ConfigError, naming the file.
    """
    return [read_golden(path) for path in sorted(folder.glob("*.json"))]


def read_golden(path: Path) -> GoldenCase:
    """Raises ConfigError, naming the file, where it holds no golden decision."""
    try:
        content = read_regular(path, MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    try:
        said = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    problems = _shape_problems(said)
    if not problems:
        problems += [f"its {key} {why}" for key in _PARTS if (why := too_much(said[key]))]
    if problems:
        raise ConfigError(f"{path} is no golden decision: {'; '.join(problems)}")
    return GoldenCase(
        name=path.stem,
        description=str(said.get("description", "")),
        case=DecisionCase.from_input(said["input"]),
        expected=said["output"],
    )


def run_golden(host: Host, golden: GoldenCase) -> GoldenResult:
    """Ask a plugin, on two instances one after the other; see `answer_to`."""
    case = golden.case
    if why := unsayable(host, case):
        return GoldenResult(golden, "skipped", [why])
    answers = [answer_to(host, case) for _ in range(RUNS)]
    first = answers[0]
    problems = _differences(golden, first)
    problems += [
        f"two instances disagree on the same input: {first}, state {as_json(first.state)}; "
        f"then {other}, state {as_json(other.state)}"
        for other in answers[1:]
        if not other.same_as(first)
    ]
    return GoldenResult(golden, "failed" if problems else "passed", problems, first)


def answer_to(host: Host, case: DecisionCase) -> Answer:
    """What a plugin answers on a new instance with the case's configuration.

    What real workers and requests can say, it is told as a router would tell it. A plugin of the
    JSON ABI gets all else as it stands in the input; others are not to be asked (`unsayable`).
    """
    try:
        host.start(case.config)
    except DecisionError as error:
        return Answer(None, case.state, Failure.of(error), None, 0.0, 0)
    if host.abi == "json_v1" and not case.exact:
        return host.ask(orjson.dumps(case.given), case)
    return host.decide(case)


def unsayable(host: Host, case: DecisionCase) -> str | None:
    """Why a plugin of this ABI cannot be asked, or None where it can."""
    if host.abi == "json_v1" or not case.malformed:
        return None
    return f"{', '.join(case.malformed)}: the ABI {host.abi} cannot say this"


def _differences(golden: GoldenCase, answer: Answer) -> list[str]:
    expected, problems = golden.expected, []
    failure = answer.failure
    reported = answer.error is not None and "error" not in expected  # it is not compared
    if expected.get("error") is None and failure is not None and not reported:
        return ["expected a decision; found " + "\n".join(failure.lines())]
    if expected.get("error") is not None:
        wanted = expected["error"]
        if answer.error is None:
            found = f"{answer}" if failure is None else "\n".join(failure.lines())
            problems.append(f"expected an error of the plugin's own; found {found}")
        elif wanted is not True and answer.error != printable(wanted, MAX_ERROR_CHARACTERS):
            problems.append(f"error: expected {as_json(wanted)}; found {as_json(answer.error)}")
    if "selected_worker" in expected and answer.selected_worker != expected["selected_worker"]:
        problems.append(
            f"selected_worker: expected {as_json(expected['selected_worker'])}; found "
            f"{as_json(answer.selected_worker)}"
        )
    if "state" in expected and failure is None:
        before = PluginState(dict(golden.case.state), as_json(golden.case.state).encode())
        after = before.merged("golden", expected["state"] or {}).values
        if as_json(after) != as_json(answer.state):
            problems.append(f"state: expected {as_json(after)}; found {as_json(answer.state)}")
    return problems


def _shape_problems(said: object) -> list[str]:
    if not isinstance(said, dict):
        return [f"it is a {type(said).__name__}; expected an object"]
    problems = [
        f"its {key} is no object; expected {what}"
        for key, what in zip(_PARTS, ("an input of the JSON ABI", _words(_OUTPUT)), strict=True)
        if not isinstance(said.get(key), dict)
    ]
    if problems:
        return problems
    output = said["output"]
    problems += [
        f"output.{key} is no part of an answer; expected {_words(_OUTPUT)}"
        for key in output
        if key not in _OUTPUT
    ]
    if not output:
        problems.append(f"its output says nothing; expected some of {_words(_OUTPUT)}")
    index, state, error = (output.get(key) for key in _OUTPUT)
    if index is not None and type(index) is not int:
        problems.append("output.selected_worker is no index and not null")
    if state is not None and not isinstance(state, dict):
        problems.append("output.state is no object and not null")
    if error is not None and error is not True and not isinstance(error, str):
        problems.append("output.error is neither null nor true (any text) nor a text")
    return problems


def _words(names: Iterable[str]) -> str:
    return ", ".join(names)
