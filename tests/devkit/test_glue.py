"""What Zig's and AssemblyScript's templates have around a policy: JSON, state, outcomes, panics.

Both have a reader of JSON of their own, for which what Python reads is the oracle.
"""

import struct
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.policy import Outcome
from sgl_router.devkit.build import build
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import read_project
from sgl_router.devkit.scaffold import new_plugin
from sgl_router.devkit.toolchains import check_tools, runner
from sgl_router.errors import BuildError
from sgl_router.testing.answer import Answer
from sgl_router.testing.case import DecisionCase
from sgl_router.testing.host import PluginHost
from sgl_router.testing.project_file import PROJECT_FILE
from sgl_router.wasm.runtime import WasmRuntime
from tests.conftest import leave_out

# Each tells what it has read of its configuration, counts its decisions in `state` and successes in
# its memory, and ends itself where it is told to.
POLICIES = {
    "zig": """
const std = @import("std");
const abi = @import("abi.zig");
pub const Input = struct {
    workers: []const struct { healthy: bool },
    config: struct { number: f64 = 0, text: []const u8 = "", panic: bool = false },
    state: State = .{},
};
pub const State = struct {
    turn: u64 = 0,
    successes: u64 = 0,
    bits: []const u8 = "",
    text: []const u8 = "",
};
pub const Outcome = struct { success: bool };
var successes: u64 = 0;
pub fn complete(outcome: Outcome) !void {
    if (outcome.success) successes += 1;
}
pub fn choose(input: Input) !struct { selected_worker: ?usize, state: State } {
    if (input.config.panic) @panic("told to");
    const bits: u64 = @bitCast(input.config.number);
    return .{ .selected_worker = null, .state = .{
        .turn = input.state.turn + 1,
        .successes = successes,
        .bits = try std.fmt.allocPrint(abi.memory, "{d}", .{bits}),
        .text = input.config.text,
    } };
}
""",
    "assemblyscript": """
import { Decision, Input, none, Outcome } from "./input";
import { quoted } from "./json";
let successes = 0;
export function complete(outcome: Outcome): void {
  if (outcome.success) ++successes;
}
export function choose(input: Input): Decision {
  assert(!input.config.get("panic").boolean, "told to");
  const turn = <i64>input.state.get("turn").number + 1;
  const bits = reinterpret<u64>(input.config.get("number").number);
  const text = quoted(input.config.get("text").string);
  const decision = none();
  decision.state = `{"turn":${turn},"successes":${successes},"bits":"${bits}","text":${text}}`;
  return decision;
}
""",
}

NO_WORKERS = DecisionCase.from_input({"workers": []})

HARD_NUMBERS = (
    "0",
    "-0.0",
    "9007199254740993",
    "9007199254740992.99999999999999999999",
    "123456789012345678901234567890",
    "1e23",
    "8.5e-7",
    "4.9e-324",
    "2.4703282292062327e-324",
    "2.4703282292062328e-324",
    "2.2250738585072011e-308",
    "1.7976931348623157e308",
    "9007199254740993." + "0" * 900 + "1",
    "0." + "0" * 400 + "1",
    "1e-99999999999",
)
"""Between two doubles, at the ends of their range, or longer than what fits into 64 bits."""

MALFORMED = (
    b"",
    b"{",
    b"nul",
    b'{"workers":[],"config":{}} {}',
    b'{"workers":[],"config":{"text":"\\x"}}',
    b'{"workers":[],"config":{"text":"\\u12g4"}}',
    b'{"workers":[],"config":{"text":"a\nb"}}',
    b'{"workers":[],"config":{"number":01}}',
    b'{"workers":[],"config":{"number":1.}}',
    b'{"workers":[],"config":{"number":1e999}}',
    b'{"workers":[],"config":{},}',
    b'{"workers":[{"healthy":1}],"config":{}}',
    b'{"workers":' + b"[" * 20_000,
)


def made(language: str, folder: Path) -> Path:
    """A plugin's folder, built, with the policy of above."""
    (one,) = (one for one in LANGUAGES if one.name == language)
    try:
        check_tools(one)
    except BuildError as error:
        leave_out(str(error))
    new_plugin(folder, "glue", one, "least_connections")
    (folder / one.policy_file).write_text(POLICIES[language], encoding="utf-8")
    project = folder / PROJECT_FILE
    text = project.read_text(encoding="utf-8")
    assert "needs = []" in text
    project.write_text(text.replace("needs = []", 'needs = ["outcomes"]'), encoding="utf-8")
    return build(read_project(folder), runner()).path


@pytest.fixture(scope="module", params=POLICIES)
def module(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(request.param, tmp_path_factory.mktemp(request.param) / "plugin")


@pytest.fixture
def host(module: Path, wasm_runtime: WasmRuntime) -> PluginHost:
    return PluginHost(module, read_project(module.parent.parent).config(), wasm_runtime)


def ask(host: PluginHost, config: bytes) -> Answer:
    return host.ask(b'{"workers":[],"config":%b,"state":{}}' % config, NO_WORKERS)


def state_of(answer: Answer) -> dict[str, Any]:
    assert answer.failure is None, answer
    return dict(answer.state)


def bits(value: float) -> str:
    return str(struct.unpack("<Q", struct.pack("<d", value))[0])


def test_state_and_what_memory_holds_come_back(host: PluginHost) -> None:
    ended = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)
    assert host.wants_outcomes
    for turn in range(3):
        state = state_of(host.decide(DecisionCase.from_input({"workers": [], "state": host.state})))
        assert (state["turn"], state["successes"]) == (turn + 1, turn)
        assert host.complete(ended) is None


def test_a_panic_says_why_and_where(host: PluginHost) -> None:
    failure = ask(host, b'{"panic":true}').failure
    assert failure is not None
    assert failure.kind == "trap"
    assert "told to" in (failure.panic or "")
    assert any("choose" in function for function in failure.backtrace)
    assert ask(host, b"{}").failure is None


@pytest.mark.parametrize("number", HARD_NUMBERS)
def test_a_hard_number_is_the_nearest_double(host: PluginHost, number: str) -> None:
    for sign in ("", "-"):
        text = sign + number.removeprefix("-")
        found = state_of(ask(host, b'{"number":%b}' % text.encode()))
        assert found["bits"] == bits(float(text))


def test_every_number_is_the_nearest_double(host: PluginHost) -> None:
    written = st.from_regex(
        r"-?(0|[1-9][0-9]{0,40})(\.[0-9]{1,40})?(e-?[0-9]{1,3})?", fullmatch=True
    )

    @settings(max_examples=300, deadline=None)
    @given(st.floats(allow_nan=False, allow_infinity=False).map(repr) | written)
    def check(text: str) -> None:
        answer = ask(host, b'{"number":%b}' % text.encode("ascii"))
        if abs(float(text)) == float("inf"):
            assert answer.error is not None
        else:
            assert state_of(answer)["bits"] == bits(float(text))

    check()


def test_every_text_comes_back(host: PluginHost) -> None:
    @settings(max_examples=300, deadline=None)
    @given(st.text(max_size=200), st.booleans())
    def check(text: str, escaped: bool) -> None:
        quoted = _escaped(text) if escaped else orjson.dumps(text)
        assert state_of(ask(host, b'{"text":%b}' % quoted))["text"] == text

    check()


def _escaped(text: str) -> bytes:
    """Each of its units of UTF-16 as an escape."""
    units = text.encode("utf-16-be")
    pairs = zip(units[::2], units[1::2], strict=True)
    return b'"%b"' % b"".join(b"\\u%02x%02X" % pair for pair in pairs)


@pytest.mark.parametrize("payload", MALFORMED, ids=lambda payload: repr(payload[:50]))
def test_what_is_malformed_is_an_error_and_no_trap(host: PluginHost, payload: bytes) -> None:
    answer = host.ask(payload, NO_WORKERS)
    assert answer.error
    assert host.instances == 1


def test_what_a_decision_leaves_behind_is_freed(host: PluginHost) -> None:
    config = orjson.dumps({"text": "é\\" * 2_000, "number": 2.2250738585072011e-308})
    for _ in range(50):
        state_of(ask(host, config))
    found_its_size = host.memory_bytes
    for _ in range(500):
        state_of(ask(host, config))
    assert host.memory_bytes == found_its_size
    assert host.instances == 1
