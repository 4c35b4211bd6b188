"""The driver: what passes between the host and a guest, and in which order the guest is called."""

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sgl_router.core.policy import Outcome
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.json_v1 import MAX_RESULT_BYTES
from tests.wasm.guests import (
    ANSWER_AT,
    FIRST,
    HEAP_AT,
    LOOP,
    RELEASE,
    Bench,
    guest,
    request,
    text_at,
    view,
)

PAGE = 65_536
BIG = '(memory (export "memory") 5)'

# Answers the input itself, put at the very end of memory.
ECHO_AT_THE_END = f"""
  (local $at i32) (local.set $at (i32.sub (i32.const {PAGE}) (local.get $len)))
  (memory.copy (local.get $at) (local.get $ptr) (local.get $len))
  (local.get $at)"""

# Notes each call: which, and with what; the notes stand from 0 on, sixteen bytes each.
NOTED = """
  (global $notes (mut i32) (i32.const 0))
  (func $note (param $call i32) (param $a i32) (param $b i32)
    (i32.store (global.get $notes) (local.get $call))
    (i32.store offset=4 (global.get $notes) (local.get $a))
    (i32.store offset=8 (global.get $notes) (local.get $b))
    (global.set $notes (i32.add (global.get $notes) (i32.const 16))))"""
ALLOC, SELECT, DEALLOC, TOLD = 1, 2, 3, 4


def told(body: str) -> str:
    return f'(func (export "on_request_complete") (param $ptr i32) (param $len i32) {body})'


def noting() -> bytes:
    """A guest that answers the notes of all calls before this one, as digits."""
    return guest(
        alloc=f"(call $note (i32.const {ALLOC}) (local.get $size) (i32.const 0)) "
        "(call $bump (local.get $size))",
        dealloc=f"(call $note (i32.const {DEALLOC}) (local.get $ptr) (local.get $size)) {RELEASE}",
        select_worker=f"(call $note (i32.const {SELECT}) (local.get $ptr) (local.get $len)) "
        "(call $hex (i32.const 0) (global.get $notes))",
        extra=NOTED + told(f"(call $note (i32.const {TOLD}) (local.get $ptr) (local.get $len))"),
    )


def notes_of(digits: bytes) -> list[tuple[int, int, int]]:
    data = bytes.fromhex(digits.decode())
    words = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    return [(words[at], words[at + 1], words[at + 2]) for at in range(0, len(words), 4)]


def test_a_decision_is_four_calls_in_this_order(bench: Bench) -> None:
    instance = bench.instance(noting())
    result = instance.select_worker(b"x" * 77, 0, 0)
    notes = notes_of(instance.select_worker(b"{}", 0, 0))
    result_at = notes[2][1]
    assert notes == [
        (ALLOC, 77, 0),
        (SELECT, HEAP_AT, 77),
        (DEALLOC, result_at, len(result) + 1),
        (DEALLOC, HEAP_AT, 77),
        (ALLOC, 2, 0),
        (SELECT, HEAP_AT, 2),
    ]


def test_an_outcome_is_three_calls_in_this_order(bench: Bench) -> None:
    instance = bench.instance(noting())
    instance.on_request_complete(b"x" * 55, 0)
    notes = notes_of(instance.select_worker(b"{}", 0, 0))
    assert notes[:3] == [(ALLOC, 55, 0), (TOLD, HEAP_AT, 55), (DEALLOC, HEAP_AT, 55)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(min_size=1, max_size=40)
    | st.lists(st.sampled_from(b"\x01\x7f\x80\x81\xff"), max_size=40).map(lambda b: bytes([*b, 0]))
)
@example(b"\0")
@example(b"\x01" * 16 + b"\0")
@example(b"\x80" * 24 + b"\0")
def test_a_result_ends_at_its_first_nul_or_not_at_all(bench: Bench, text: bytes) -> None:
    """Whatever stands at the end of memory, where nothing beyond may be read."""
    instance = bench.instance(guest(select_worker=ECHO_AT_THE_END))
    expected, nul, _ = text.partition(b"\0")
    if nul:
        assert instance.select_worker(text, 0, 0) == expected
        assert not instance.poisoned
    else:
        with pytest.raises(DecisionError, match=f"no NUL within {len(text)} bytes"):
            instance.select_worker(text, 0, 0)
        assert instance.poisoned


@pytest.mark.parametrize("size", [MAX_RESULT_BYTES, MAX_RESULT_BYTES + 1])
def test_the_longest_result(bench: Bench, size: int) -> None:
    fill = f"""(memory.fill (i32.const 100000) (i32.const 120) (i32.const {size}))
               (i32.store8 (i32.const {100_000 + size}) (i32.const 0)) (i32.const 100000)"""
    instance = bench.instance(guest(select_worker=fill, memory=BIG))
    if size == MAX_RESULT_BYTES:
        assert instance.select_worker(b"{}", 0, 0) == b"x" * size
        return
    with pytest.raises(DecisionError, match="no NUL within 65,537 bytes") as caught:
        instance.select_worker(b"{}", 0, 0)
    assert caught.value.kind == "bad_output"


@pytest.mark.parametrize("size", [PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])
def test_an_input_larger_than_a_page(bench: Bench, size: int) -> None:
    """The exchange grows for it, and serves small inputs as before."""
    ends = "(call $hex (i32.add (local.get $ptr) (i32.sub (local.get $len) (i32.const 4))) {four})"
    wasm = guest(select_worker=ends.replace("{four}", "(i32.const 4)"), memory=BIG)
    instance = bench.instance(wasm)
    for payload in (b"abcd", b"x" * (size - 4) + b"wxyz", b"efgh"):
        digits = instance.select_worker(payload, 0, 0)
        assert bytes.fromhex(digits.decode()) == payload[-4:]


@pytest.mark.parametrize("beyond", [0, 1])
def test_an_input_may_end_where_memory_ends(bench: Bench, beyond: int) -> None:
    last = f"(i32.sub (i32.const {PAGE + beyond}) (local.get $size))"
    instance = bench.instance(
        guest(alloc=last, select_worker="(call $hex (local.get $ptr) (local.get $len))")
    )
    if beyond:
        with pytest.raises(DecisionError, match="alloc returned 0xfffe; memory ends at 0x10000"):
            instance.select_worker(b"abc", 0, 0)
    else:
        assert bytes.fromhex(instance.select_worker(b"abc", 0, 0).decode()) == b"abc"


@pytest.mark.parametrize("outcome", [False, True])
def test_an_input_larger_than_all_that_a_guest_may_have(bench: Bench, outcome: bool) -> None:
    instance = bench.instance(guest(extra=told("")), max_memory_bytes=2 * PAGE)
    payload = b"x" * (2 * PAGE + 1)
    with pytest.raises(DecisionError) as caught:
        if outcome:
            instance.on_request_complete(payload, 0)
        else:
            instance.select_worker(payload, 0, 0)
    assert caught.value.kind == "out_of_memory"
    assert "131,073" in caught.value.detail
    assert "max_memory_bytes is 131,072" in caught.value.detail


def test_memory_that_grows_in_each_call(bench: Bench) -> None:
    """Input and result are each in a page that was not there before the call."""
    page = f"(i32.mul (memory.grow (i32.const 1)) (i32.const {PAGE}))"
    instance = bench.instance(
        guest(
            alloc=page,
            select_worker=f"""(local $at i32) (local.set $at {page})
              (memory.copy (local.get $at) (local.get $ptr) (local.get $len)) (local.get $at)""",
            dealloc=f"(drop {page})",
        ),
    )
    for text in (b"one", b"two", b"three"):
        assert instance.select_worker(text + b"\0", 0, 0) == text
    assert not instance.poisoned


def test_the_result_is_the_one_before_it_was_freed(bench: Bench) -> None:
    spoil = "(memory.fill (local.get $ptr) (i32.const 120) (local.get $size))"
    instance = bench.instance(guest(dealloc=spoil))
    assert instance.select_worker(b"{}", 0, 0) == FIRST.encode()


def test_a_result_that_overlaps_the_input(bench: Bench) -> None:
    instance = bench.instance(guest(select_worker="(i32.add (local.get $ptr) (i32.const 3))"))
    assert instance.select_worker(b"no {}\0", 0, 0) == b"{}"


def test_one_result_is_not_taken_for_the_next(bench: Bench) -> None:
    """What is left of a decision says nothing about one that fails before it is taken."""
    fails = f"(if (global.get $calls) (then {LOOP})) (global.set $calls (i32.const 1))"
    wasm = guest(select_worker=f"{fails} (i32.const {ANSWER_AT})")
    instance = bench.instance(wasm, max_execution_time_ms=20)
    assert instance.select_worker(b"{}", 0, 0) == FIRST.encode()
    with pytest.raises(DecisionError, match="timeout"):
        instance.select_worker(b"{}", 0, 0)
    assert instance.late_failure is None


@pytest.mark.parametrize(
    ("alloc", "kind"),
    [("(i32.const 0)", "out_of_memory"), ("(i32.const 65535)", "bad_output")],
)
async def test_an_outcome_that_a_guest_has_no_room_for(bench: Bench, alloc: str, kind: str) -> None:
    """It loses nothing but the instance."""
    tried = "(global.set $calls (i32.add (global.get $calls) (i32.const 1)))"
    second = f"{tried} (if (i32.gt_u (global.get $calls) (i32.const 1)) (then (return {alloc})))"
    wasm = guest(alloc=f"{second} (call $bump (local.get $size))", extra=told(""))
    policy = await bench.policy(wasm)
    assert policy.select_worker(view(True), request()) == 0
    policy.on_request_complete(Outcome("http://a", True, 200, 1.0, 2.0, 3, None))
    assert policy.failures == {kind: 1}
    assert policy.select_worker(view(True), request()) == 0


def test_a_payload_is_copied_as_it_is(bench: Bench) -> None:
    keep = "(memory.copy (i32.const 0) (local.get $ptr) (local.get $len))"
    wasm = guest(select_worker=f"{keep} (call $hex (i32.const 0) (local.get $len))")
    every_byte = bytes(range(256))
    digits = bench.instance(wasm).select_worker(every_byte, 0, 0)
    assert bytes.fromhex(digits.decode()) == every_byte


def test_two_instances_share_nothing(bench: Bench) -> None:
    count = """(global.set $calls (i32.add (global.get $calls) (i32.const 1)))
      (i32.store8 (i32.const 4096) (i32.add (i32.const 48) (global.get $calls)))
      (i32.const 4096)"""
    wasm = guest(select_worker=count, extra=text_at(4097, b"\0"))
    one, other = bench.instance(wasm, name="one"), bench.instance(wasm, name="other")
    found = [instance.select_worker(b"{}", 0, 0) for instance in (one, other, one)]
    assert orjson.loads(b",".join(found).join((b"[", b"]"))) == [1, 1, 2]
