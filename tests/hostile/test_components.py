"""Components that misbehave, while they are loaded and while they are called."""

import json
import subprocess
import sys

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.errors import FailureKind
from sgl_router.wasm.component_binary import MAX_DEPTH, MAX_SECTIONS
from tests.hostile import inside
from tests.hostile.component_modules import GOOD_STATE, returning, turning
from tests.hostile.modules import LONG, SHORT, section, sized
from tests.hostile.outcomes import Memory, refused, stand
from tests.wasm.component_guests import LOOP, TEXT_AT, answer, component
from tests.wasm.guests import Bench, leb128

LIMIT_MS = 50
TIMEOUT = f"max_execution_time_ms ({LIMIT_MS})"
COMPONENT_HEADER = b"\0asm\x0d\0\x01\0"
OUTCOME = Outcome("http://10.0.0.1:30000", True, 200, 81.2, 913.4, 64, None)
MIB = 1024 * 1024
DEEP = "(func $deep (param i32) (result i32) (i32.add (call $deep (local.get 0)) (i32.const 1)))"
GROW = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) (unreachable)"
UNREACHABLE = "wasm `unreachable` instruction executed"


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("wasm", "kind", "named"),
    [
        pytest.param(turning(LOOP), "timeout", TIMEOUT, id="endless-loop"),
        pytest.param(turning("(unreachable)"), "trap", UNREACHABLE, id="trap"),
        pytest.param(
            turning("(drop (call $deep (i32.const 0)))", extra=DEEP),
            "trap",
            "call stack exhausted",
            id="recursion",
        ),
        pytest.param(turning(GROW), "trap", UNREACHABLE, id="memory-past-the-limit"),
        pytest.param(
            turning(f"(return (i32.const {2**31}))"), "trap", "out of bounds", id="result-far-out"
        ),
        pytest.param(turning("(return (i32.const 1025))"), "trap", "not aligned", id="unaligned"),
        pytest.param(returning(b"\7" + bytes(23)), "trap", "discriminant", id="no-such-case"),
        pytest.param(
            returning(answer(0, (TEXT_AT, 2**31))), "trap", "out of bounds", id="state-too-long"
        ),
        pytest.param(
            returning(answer(error=(2**32 - 4, 8))), "trap", "out of bounds", id="error-far-out"
        ),
        pytest.param(
            returning(answer(0, (9000, 2)), extra='(data (i32.const 9000) "\\ff\\fe")'),
            "trap",
            "utf-8",
            id="state-not-utf-8",
        ),
        pytest.param(
            turning(
                "(global.set $turned (i32.const 1))",
                post="(if (global.get $turned) (then (unreachable)))",
                extra="(global $turned (mut i32) (i32.const 0))",
            ),
            "trap",
            UNREACHABLE,
            id="trap-after-the-answer",
        ),
    ],
)
async def test_a_failure_costs_one_decision(
    bench: Bench, wasm: bytes, kind: FailureKind, named: str
) -> None:
    seat = await stand(bench, wasm, max_execution_time_ms=LIMIT_MS)
    seat.fails_alone(kind, named)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("result", "kind", "named"),
    [
        pytest.param(answer(99), "out_of_range", "99 of 3 workers", id="index"),
        pytest.param(answer(2**32 - 1), "out_of_range", "4294967295", id="index-of-32-bits"),
        pytest.param(answer(0, (TEXT_AT, 3)), "bad_output", "not JSON", id="state-cut-off"),
        pytest.param(answer(0, (TEXT_AT, 0)), "bad_output", "not JSON", id="state-empty"),
        pytest.param(answer(0, (TEXT_AT + 6, 1)), "bad_output", "object", id="state-a-number"),
    ],
)
async def test_a_bad_answer_costs_one_decision(
    bench: Bench, result: bytes, kind: FailureKind, named: str
) -> None:
    seat = await stand(bench, returning(result))
    seat.fails_alone(kind, named, thrown_away=False)


async def test_an_error_is_cut_and_escaped(bench: Bench) -> None:
    said = '(data (i32.const 9000) "\\1b[31m%s<b>\\00\\0a")'
    seat = await stand(bench, returning(answer(error=(9000, 12)), extra=said))
    seat.decides()
    failure = seat.falls_back("plugin_error")
    assert failure.detail == r"\x1b[31m%s<b>\x00\n"
    assert inside.state(seat.plugin) == json.loads(GOOD_STATE)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("as_error", [False, True])
async def test_a_text_of_many_megabytes_is_not_kept(bench: Bench, as_error: bool) -> None:
    size = 60 * MIB
    fill = f"(memory.fill (i32.const 131072) (i32.const 97) (i32.const {size}))"
    result = answer(error=(131072, size)) if as_error else answer(0, (131072, size))
    at = '(data (i32.const 2048) "' + "".join(f"\\{byte:02x}" for byte in result) + '")'
    wasm = turning(
        f"{fill} (return (i32.const 2048))", extra=at, memory=_memory(size // 65_536 + 4)
    )
    seat = await stand(bench, wasm, max_memory_bytes=100 * MIB)
    seat.decides()
    seat.falls_back("plugin_error" if as_error else "bad_output")
    before = Memory.now()
    for _ in range(5):
        failure = seat.falls_back("plugin_error" if as_error else "bad_output")
        assert len(failure.detail) < 2_000
        seat.decides()
    before.returned()


def _memory(pages: int) -> str:
    return f'(memory (export "memory") {pages})'


async def test_a_failing_outcome_fails_nothing(bench: Bench) -> None:
    told = b'{"needs": ["outcomes"]}'
    wasm = component(report="(unreachable)", sections={"sgl-router.manifest": told})
    seat = await stand(bench, wasm, lane="inline")
    seat.decides()
    told_of = inside.failures(seat.plugin)["trap"]
    seat.plugin.on_request_complete(OUTCOME)
    assert inside.failures(seat.plugin) == {"trap": told_of + 1}
    seat.decides()


# ---- at load


def realloc(body: str) -> str:
    return f'(func (export "realloc") (param i32 i32 i32 i32) (result i32) {body})'


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        pytest.param({"init": LOOP}, "timeout", id="loop-in-init"),
        pytest.param({"init": "(unreachable)"}, "trap", id="trap-in-init"),
        pytest.param({"select": LOOP}, "timeout", id="loop-in-select-worker"),
        pytest.param({"extra": f"(func $s {LOOP}) (start $s)"}, "timeout", id="loop-in-start"),
        pytest.param({"realloc": realloc(LOOP)}, "timeout", id="loop-in-realloc"),
        pytest.param({"realloc": realloc("(i32.const -8)")}, "trap", id="realloc-far-out"),
        pytest.param({"init": "(i32.const -4)"}, "trap", id="result-of-init-far-out"),
        pytest.param(
            {"init": "(call $deep (i32.const 0))", "extra": DEEP}, "trap", id="recursion-in-init"
        ),
    ],
)
async def test_a_failure_at_load_is_a_refusal(
    bench: Bench, parts: dict[str, str], named: str
) -> None:
    wasm = component(**{"post": "", **parts})  # type: ignore[arg-type]
    await refused(bench, wasm, named, max_execution_time_ms=LIMIT_MS)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        pytest.param(b"", "does not export the interface", id="the-header-alone"),
        pytest.param(b"\x04", "ends unexpectedly", id="cut-off"),
        pytest.param(sized(4, COMPONENT_HEADER[:5]), "ends unexpectedly", id="half-a-component"),
        pytest.param(sized(1, COMPONENT_HEADER), "core module that is none", id="no-core-module"),
        pytest.param(b"\3\0" * (MAX_SECTIONS + 1), "sections", id="too-many-sections"),
        pytest.param(section(2, *[b""] * 300_000), "entries", id="too-many-entries"),
        pytest.param(leb128(0) + b"\xff" * 9, "too long", id="a-size-without-end"),
    ],
)
async def test_bytes_that_are_no_component(bench: Bench, content: bytes, named: str) -> None:
    await refused(bench, COMPONENT_HEADER + content, named)


async def test_components_within_components(bench: Bench) -> None:
    nested = COMPONENT_HEADER
    for _ in range(MAX_DEPTH + 2):
        nested = COMPONENT_HEADER + sized(4, nested)
    await refused(bench, nested, "deep")


RESOURCE = "(type $r (resource (rep i32)))"
NEW = "(core func $new (canon resource.new $r))"
HANDLES = f"""{RESOURCE} {NEW}
  (core module $filling (import "h" "new" (func $new (param i32) (result i32)))
    (func (export "fill") (loop $l (drop (call $new (i32.const 1))) (br $l))))
  (core instance (instantiate $filling (with "h" (instance (export "new" (func $new))))))"""


def nested(content: str, depth: int) -> str:
    return f"(component {nested(content, depth - 1)})" if depth else content


@pytest.mark.parametrize(
    ("outer", "named"),
    [
        pytest.param(HANDLES, "resource.new", id="handles-without-end"),
        pytest.param(nested(HANDLES, 1), "resource.new", id="in-a-component-within"),
        pytest.param(nested(HANDLES, MAX_DEPTH), "resource.new", id="in-the-innermost"),
        pytest.param(
            f"{RESOURCE} (core func (canon resource.drop $r))", "resource.drop", id="drop"
        ),
        pytest.param(f"{RESOURCE} (core func (canon resource.rep $r))", "resource.rep", id="rep"),
    ],
)
async def test_what_the_host_would_keep_for_it(bench: Bench, outer: str, named: str) -> None:
    refusal = await refused(bench, component(outer=outer), named)
    assert refusal.codes == ("component_builtin",)


async def test_a_component_of_more_than_64_mib(bench: Bench) -> None:
    await refused(bench, COMPONENT_HEADER, "67,108,864", size=64 * MIB + 1)


def doubling(depth: int) -> bytes:
    """A sound plugin, beside which stand components each of which is twice in the next."""
    inner = "(component $c0 (core module $m (func)) (core instance (instantiate $m)))"
    for level in range(1, depth + 1):
        inner = f"""(component $c{level} {inner}
          (instance (instantiate $c{level - 1})) (instance (instantiate $c{level - 1})))"""
    return component(outer=f"{inner} (instance (instantiate $c{depth}))")


async def test_a_component_that_is_instantiated_more_often_than_it_says(bench: Bench) -> None:
    await refused(bench, doubling(3), "instance count too high")


@pytest.mark.parametrize("handler", ["before", "after"])
def test_no_component_ends_the_process(handler: str) -> None:
    """Recursion and bad pointers, on the event loop and on a plugin's own thread."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.hostile.component_child", handler],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    verdicts = [json.loads(line) for line in child.stdout.splitlines()]
    assert len(verdicts) == 8
    assert {verdict["kind"] for verdict in verdicts} == {"trap"}


async def test_short_requests_are_served_between(bench: Bench) -> None:
    seat = await stand(bench, turning("(unreachable)"))
    for body in (SHORT, LONG, SHORT):
        if body is LONG:
            seat.falls_back("trap", body)
        else:
            seat.decides(body)
