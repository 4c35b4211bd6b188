"""Plugins that misbehave while they are called; each case is named by its row of the catalogue.

Rows: 1 endless loops, 2 loops of what takes no time or much, 3 pointers from `alloc`, 4 memory that
moves, 5 pointers to results, 6 results that change, 22 leaks, 25 exits.
"""

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.errors import FailureKind
from tests.hostile import inside
from tests.hostile.modules import GOOD, GRANTED, LONG, SHORT, turning, when_long
from tests.hostile.outcomes import Memory, refused, stand
from tests.wasm.guests import ANSWER_AT, LOOP, Bench, guest, text_at, wasi

LIMIT_MS = 50
TIMEOUT = f"max_execution_time_ms ({LIMIT_MS})"
PAGE = 65_536
DIGIT_AT = ANSWER_AT + GOOD.index("0")
VECTOR_AT, OUT_AT = 64, 128


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"alloc": LOOP}, id="1-loop-in-alloc"),
        pytest.param({"select_worker": LOOP}, id="1-loop-in-select_worker"),
    ],
)
async def test_an_endless_loop(bench: Bench, parts: dict[str, str]) -> None:
    seat = await stand(bench, turning(**parts), max_execution_time_ms=LIMIT_MS)
    seat.fails_alone("timeout", TIMEOUT)


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"extra": f"(func $f {LOOP}) (start $f)"}, id="1-loop-in-start"),
        pytest.param({"extra": f'(func (export "_initialize") {LOOP})'}, id="1-loop-in-initialize"),
        pytest.param({"init": LOOP}, id="1-loop-in-init"),
        pytest.param({"alloc": LOOP}, id="1-loop-in-alloc-at-load"),
        pytest.param({"select_worker": LOOP}, id="1-loop-in-select_worker-at-load"),
    ],
)
async def test_an_endless_loop_at_load(bench: Bench, parts: dict[str, str]) -> None:
    wasm = guest(**parts)  # type: ignore[arg-type]
    await refused(bench, wasm, "timeout", TIMEOUT, max_execution_time_ms=LIMIT_MS)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(LOOP, "timeout", id="1-loop-in-dealloc"),
        pytest.param("(unreachable)", "trap", id="1-trap-in-dealloc"),
    ],
)
async def test_a_failing_dealloc_loses_no_decision(
    bench: Bench, body: str, kind: FailureKind
) -> None:
    seat = await stand(bench, turning(dealloc=body), max_execution_time_ms=LIMIT_MS)
    before = Memory.now()
    for failures in range(1, 4):
        seat.decides()
        alive = inside.living(seat.plugin)
        seat.decides(LONG)
        assert inside.failures(seat.plugin) == {kind: failures}
        assert [what() for what in alive] == [None, None]
        seat.spares_its_neighbour()
    before.returned()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        pytest.param(LOOP, "timeout", id="1-loop-in-on_request_complete"),
        pytest.param("(unreachable)", "trap", id="1-trap-in-on_request_complete"),
    ],
)
async def test_a_failure_to_learn_fails_no_request(
    bench: Bench, body: str, kind: FailureKind
) -> None:
    told = '(func (export "on_request_complete") (param $ptr i32) (param $len i32) {})'
    wasm = turning(extra=told.format(when_long(body, "$len")))
    seat = await stand(bench, wasm, max_execution_time_ms=LIMIT_MS)
    before = Memory.now()
    for failures in range(1, 4):
        seat.decides()
        alive = inside.living(seat.plugin)
        decision = seat.router.dispatch(SHORT)
        url = decision.worker.url
        seat.router.dispatcher.complete(
            decision, Outcome(url, False, 502, None, 5.0, 0, LONG.decode())
        )
        assert inside.failures(seat.plugin) == {kind: failures}
        assert [what() for what in alive] == [None, None]
        seat.spares_its_neighbour()
    before.returned()


WASI = "".join(
    [
        wasi("random_get", "i32 i32"),
        wasi("poll_oneoff", "i32 i32 i32 i32"),
        wasi("fd_write", "i32 i32 i32 i32"),
        wasi("sched_yield", ""),
        wasi("proc_exit", "i32", ""),
    ]
)
OFTEN = """(func $often (param $depth i32)
  (if (local.get $depth) (then
    (call $often (i32.sub (local.get $depth) (i32.const 1)))
    (call $often (i32.sub (local.get $depth) (i32.const 1))))))"""
ODD = f"""(table $t 8 funcref) (elem (i32.const 7) $nothing) (func $nothing) (data $d "12345678")
  (type $nothing (func)) {OFTEN}"""
VECTOR = f"""(i32.store (i32.const {VECTOR_AT}) (i32.const 0))
  (i32.store (i32.const {VECTOR_AT + 4}) (i32.const 32768))"""


LOOPED = {
    "memory.fill": "(memory.fill (i32.const 0) (i32.const 0) (i32.const 0))",
    "memory.copy": "(memory.copy (i32.const 0) (i32.const 0) (i32.const 0))",
    "memory.init": "(memory.init $d (i32.const 0) (i32.const 0) (i32.const 8))",
    "memory.grow": "(drop (memory.grow (i32.const 0)))",
    "table.grow": "(drop (table.grow $t (ref.null func) (i32.const 0)))",
    "table.set": "(table.set (i32.const 0) (ref.func $nothing))",
    "table.fill": "(table.fill (i32.const 0) (ref.null func) (i32.const 8))",
    "call_indirect": "(call_indirect (type $nothing) (i32.const 7))",
    "random_get": "(drop (call $random_get (i32.const 0) (i32.const 32768)))",
    "poll_oneoff": f"""(drop (call $poll_oneoff
      (i32.const 0) (i32.const 4096) (i32.const 64) (i32.const {OUT_AT})))""",
    "fd_write": f"""{VECTOR} (drop (call $fd_write
      (i32.const 1) (i32.const {VECTOR_AT}) (i32.const 1) (i32.const {OUT_AT})))""",
    "sched_yield": "(drop (call $sched_yield))",
}


def looping(body: str) -> str:
    return f"(loop $again {body} (br $again))"


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "body",
    [
        *[pytest.param(looping(body), id=f"2-loop-of-{name}") for name, body in LOOPED.items()],
        pytest.param("(loop $l (br_table $l $l $l (i32.const 1)))", id="2-loop-of-br_table"),
        pytest.param("(call $often (i32.const 60))", id="2-calls-without-a-loop"),
    ],
)
async def test_a_loop_of_what_takes_no_time(bench: Bench, body: str) -> None:
    wasm = turning(select_worker=body, extra=ODD, imports=WASI)
    seat = await stand(bench, wasm, max_execution_time_ms=LIMIT_MS, allowed_syscalls=list(GRANTED))
    seat.fails_alone("timeout", TIMEOUT)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "body",
    [
        pytest.param("(memory.copy (i32.const 65537) (i32.const 65536) (i32.const 0x4000000))",
                     id="2-copy-of-64-MB"),
        pytest.param("(memory.fill (i32.const 65536) (i32.const 1) (i32.const 0x4000000))",
                     id="2-fill-of-64-MB"),
    ],
)  # fmt: skip
async def test_a_loop_of_what_takes_long(bench: Bench, body: str) -> None:
    wasm = turning(select_worker=looping(body), memory='(memory (export "memory") 1030)')
    seat = await stand(
        bench, wasm, max_execution_time_ms=LIMIT_MS, max_memory_bytes=100 * 1024 * 1024
    )
    seat.fails_alone("timeout", TIMEOUT)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("pointer", "kind", "named"),
    [
        pytest.param("0", "out_of_memory", "max_memory_bytes is 1,048,576", id="3-null"),
        pytest.param("-1", "bad_output", "0xffffffff", id="3-minus-one"),
        pytest.param("0x80000000", "bad_output", "0x80000000", id="3-sign-bit"),
        pytest.param("0x7fffffff", "bad_output", "0x7fffffff", id="3-most-positive"),
        pytest.param("65536", "bad_output", "0x10000", id="3-end"),
        pytest.param("65535", "bad_output", "0xffff", id="3-end-less-one"),
        pytest.param("-4096", "bad_output", "0xfffff000", id="3-sum-wraps-around"),
    ],
)
async def test_a_pointer_from_alloc(
    bench: Bench, pointer: str, kind: FailureKind, named: str
) -> None:
    wasm = turning(alloc=f"(return (i32.const {pointer}))")
    (await stand(bench, wasm)).fails_alone(kind, named)


@pytest.mark.parametrize(
    "alloc",
    [
        pytest.param(f"(i32.sub (i32.const {PAGE}) (local.get $size))", id="3-exactly-to-the-end"),
        pytest.param("(i32.const 1)", id="3-first-byte"),
    ],
)
async def test_a_pointer_from_alloc_that_just_fits(bench: Bench, alloc: str) -> None:
    at = PAGE // 2  # where neither input gets
    wasm = guest(
        alloc=alloc, dealloc="", select_worker=f"(i32.const {at})", extra=text_at(at, GOOD)
    )
    seat = await stand(bench, wasm)
    seat.decides()
    seat.decides(LONG)


ECHO_BRACES = f"""
  (if (i32.ne (i32.load8_u (local.get $ptr)) (i32.const {ord("{")})) (then (unreachable)))
  (if (i32.ne (i32.const {ord("}")})
      (i32.load8_u (i32.sub (i32.add (local.get $ptr) (local.get $len)) (i32.const 1))))
    (then (unreachable)))
  (i32.const {ANSWER_AT})"""


@pytest.mark.parametrize(
    "alloc",
    [
        pytest.param(f"(i32.mul (memory.grow (i32.const 1)) (i32.const {PAGE}))", id="4-one-page"),
        pytest.param(f"(i32.mul (memory.grow (i32.const 16)) (i32.const {PAGE}))", id="4-a-MB"),
    ],
)
async def test_memory_that_moves_in_alloc(bench: Bench, alloc: str) -> None:
    """The guest traps unless its input arrives where memory then is."""
    wasm = guest(GOOD, alloc=alloc, select_worker=ECHO_BRACES, dealloc="")
    seat = await stand(bench, wasm, max_memory_bytes=100 * 1024 * 1024)
    for _ in range(30):
        seat.decides()
        seat.decides(LONG)
    seat.spares_its_neighbour()


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("body", "named"),
    [
        pytest.param("(i32.store8 (i32.const 65535) (i32.const 120)) (return (i32.const 65535))",
                     "NUL", id="5-last-byte"),
        pytest.param("(memory.fill (i32.const 60000) (i32.const 120) (i32.const 5536))"
                     "(return (i32.const 60000))", "NUL", id="5-runs-to-the-end"),
        pytest.param("(return (i32.const -1))", "0xffffffff", id="5-negative"),
        pytest.param("(return (i32.const 0x80000000))", "0x80000000", id="5-sign-bit"),
        pytest.param("(return (i32.const 65536))", "0x10000", id="5-end"),
        pytest.param("(return (i32.const 70000))", "0x11170", id="5-past-the-end"),
        pytest.param("(return (i32.const 0))", "0x0", id="5-null"),
    ],
)  # fmt: skip
async def test_a_pointer_to_a_result(bench: Bench, body: str, named: str) -> None:
    wasm = turning(select_worker=body)
    (await stand(bench, wasm)).fails_alone("bad_output", named)


COPY_OVER = f"""
  (memory.copy (local.get $ptr) (i32.const {ANSWER_AT}) (i32.const {len(GOOD) + 1}))
  (local.get $ptr)"""
MEND = f"(i32.store8 (i32.const {DIGIT_AT}) (i32.const {ord('0')}))"
SCRIBBLE = "(i32.store8 (i32.const {}) (i32.const {}))"


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"select_worker": COPY_OVER}, id="6-over-the-input"),
        pytest.param(
            {
                "select_worker": f"{MEND} (i32.const {ANSWER_AT})",
                "dealloc": SCRIBBLE.format(DIGIT_AT, ord("9")),
            },
            id="6-changed-by-dealloc",
        ),
        pytest.param(
            {
                "select_worker": f"{SCRIBBLE.format(ANSWER_AT, ord('{'))} (i32.const {ANSWER_AT})",
                "dealloc": SCRIBBLE.format(ANSWER_AT, 0),
            },
            id="6-wiped-by-dealloc",
        ),
    ],
)
async def test_the_hosts_own_copy_decides(bench: Bench, parts: dict[str, str]) -> None:
    seat = await stand(bench, guest(GOOD, **parts))  # type: ignore[arg-type]
    for _ in range(3):
        seat.decides()
    assert inside.state(seat.plugin) == {"n": 1}
    assert not inside.failures(seat.plugin)


@pytest.mark.parametrize("digit", [pytest.param(1, id="6-the-previous-result-again")])
async def test_the_same_place_is_read_anew(bench: Bench, digit: int) -> None:
    """What `dealloc` makes of a result that it was given back is what the next call returns."""
    seat = await stand(bench, turning(dealloc=SCRIBBLE.format(DIGIT_AT, ord(str(digit)))))
    seat.decides()
    seat.decides(LONG)
    seat.decides(by=digit)


@pytest.mark.parametrize("decisions", [pytest.param(3_000, id="22-leaks-1-KB-a-call")])
async def test_a_leak_costs_no_decision(bench: Bench, decisions: int) -> None:
    """An instance that runs full is replaced between two calls; its state goes with the plugin."""
    leaks = """
      (local $at i32)
      (if (i32.eqz (local.tee $at (call $bump (i32.add (local.get $size) (i32.const 1024)))))
        (then
          (drop (memory.grow (i32.const 1)))
          (local.set $at (call $bump (i32.add (local.get $size) (i32.const 1024))))))
      (local.get $at)"""
    seat = await stand(bench, guest(GOOD, alloc=leaks, dealloc=""), max_memory_bytes=16 * PAGE)
    seat.decides()
    before = Memory.now()
    for _ in range(decisions):
        seat.decides()
    assert not inside.failures(seat.plugin)
    assert inside.state(seat.plugin) == {"n": 1}
    before.returned()


EXITS = [
    pytest.param({"select_worker": "(call $proc_exit (i32.const 0))"}, 0, id="25-exit-0"),
    pytest.param({"select_worker": "(call $proc_exit (i32.const 1))"}, 1, id="25-exit-1"),
    pytest.param({"select_worker": "(call $proc_exit (i32.const -1))"}, -1, id="25-exit-minus-1"),
    pytest.param({"alloc": "(call $proc_exit (i32.const 0))"}, 0, id="25-exit-in-alloc"),
    pytest.param({"dealloc": "(call $proc_exit (i32.const 0))"}, 0, id="25-exit-in-dealloc"),
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("parts", "code"), EXITS)
async def test_an_exit(bench: Bench, parts: dict[str, str], code: int) -> None:
    wasm = turning(imports=WASI, **parts)
    seat = await stand(bench, wasm, allowed_syscalls=list(GRANTED))
    seat.fails_alone("trap", f"proc_exit({code})")


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param({"init": "(call $proc_exit (i32.const 0))"}, id="25-exit-in-init"),
        pytest.param(
            {"extra": "(func $f (call $proc_exit (i32.const 0))) (start $f)"},
            id="25-exit-in-start",
        ),
    ],
)
async def test_an_exit_at_load(bench: Bench, parts: dict[str, str]) -> None:
    wasm = guest(imports=WASI, **parts)  # type: ignore[arg-type]
    await refused(bench, wasm, "proc_exit(0)", allowed_syscalls=list(GRANTED))


@pytest.mark.parametrize(
    "extra", [pytest.param("(tag $t) (func (throw $t))", id="25-uncaught-exception")]
)
async def test_exceptions_are_not_to_be_had(bench: Bench, extra: str) -> None:
    await refused(bench, guest(extra=extra), "not valid", "exceptions")


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize("body", [pytest.param("(unreachable)", id="25-abort")])
async def test_an_exception_that_aborts(bench: Bench, body: str) -> None:
    (await stand(bench, turning(select_worker=body))).fails_alone("trap", "unreachable")
