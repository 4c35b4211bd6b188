"""The table driver: what it asks of a guest, and what comes of guests that break the contract."""

import gc
import weakref

import pytest
import wasmtime
from xxhash import xxh3_64_intdigest

from sgl_router.core.request import RequestView
from sgl_router.wasm.abi.table_v1 import ENTRIES_AT, RECORD_BYTES, TableEncoder
from sgl_router.wasm.calls import PublicCalls
from sgl_router.wasm.driver import GuestError
from tests.wasm.guests import request, view
from tests.wasm.table_guests import (
    PAGE,
    Hosted,
    plain_encoder,
    record_of,
    table_guest,
)

TWO = view(True, True)


def decide(wasm: bytes, workers: int = 2) -> int | None:
    """The first decision of a guest."""
    return Hosted(wasm).decide(plain_encoder(), view(*[True] * workers), request())


def failure(wasm: bytes, workers: int = 2) -> GuestError:
    with pytest.raises(GuestError) as caught:
        decide(wasm, workers)
    return caught.value


@pytest.mark.parametrize("index", [0, 1, 2, 77, 2**31 - 1])
def test_an_index_is_returned_as_it_is(index: int) -> None:
    """Whether there is such a worker is for others to judge."""
    assert decide(table_guest(f"(i32.const {index})")) == index


def test_minus_one_is_no_worker() -> None:
    assert decide(table_guest("(i32.const -1)")) is None


@pytest.mark.parametrize("number", [-2, -3, -1000, -(2**31)])
def test_another_negative_number_is_a_failure_of_the_plugins(number: int) -> None:
    error = failure(table_guest(f"(i32.const {number})"))
    assert error.kind == "plugin_error"
    assert str(number) in error.detail


def test_after_such_a_failure_the_guest_goes_on() -> None:
    """It returns -5, then what the load of the second worker is."""
    wasm = table_guest(
        """(if (i32.eq (global.get $calls) (i32.const 1)) (then (return (i32.const -5))))
           (i32.load offset=72 (local.get $table))"""
    )
    hosted, encoder, workers = Hosted(wasm), plain_encoder(), view(True, True)
    with pytest.raises(GuestError):
        hosted.decide(encoder, workers, request())
    workers[1].load = 9
    workers[1].touched()
    assert hosted.decide(encoder, workers, request()) == 9


@pytest.mark.parametrize(
    ("alloc", "kind", "said"),
    [
        ("(i32.const 0)", "out_of_memory", "returned 0"),
        ("(i32.const -1)", "bad_output", "0xffffffff"),
        ("(i32.const 0x80000000)", "bad_output", "0x80000000"),
        ("(i32.const 65536)", "bad_output", "0x10000; memory ends at 0x10000"),
        ("(i32.const 65535)", "bad_output", "0xffff"),
        (
            "(i32.sub (i32.const 65537) (local.get $size))",
            "bad_output",
            "memory ends at 0x10000",
        ),
    ],
)
def test_a_pointer_of_alloc_that_leads_nowhere(alloc: str, kind: str, said: str) -> None:
    error = failure(table_guest(alloc=alloc))
    assert error.kind == kind
    assert said in error.detail


def test_what_alloc_returns_may_end_where_memory_ends() -> None:
    wasm = table_guest("(local.get $count)", alloc="(i32.sub (i32.const 65536) (local.get $size))")
    assert decide(wasm) == 2


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_whichever_allocation_is_refused(nth: int) -> None:
    """The table, the request, and the text."""
    fails = f"""
      (global.set $allocs (i32.add (global.get $allocs) (i32.const 1)))
      (select (i32.const 0) (i32.mul (global.get $allocs) (i32.const 8192))
        (i32.eq (global.get $allocs) (i32.const {nth})))"""
    hosted = Hosted(table_guest(alloc=fails))
    encoder = TableEncoder({"request_text"}, 1024)
    asked = request(b'{"prompt": "x"}')
    with pytest.raises(GuestError, match="returned 0") as caught:
        hosted.decide(encoder, TWO, asked)
    assert caught.value.kind == "out_of_memory"
    assert hosted.number("calls") == 0, "a guest is not asked with a part of its input"


def test_memory_that_grows_in_every_call() -> None:
    """Its base moves; what is written after that arrives."""
    grows = f"(i32.mul (memory.grow (i32.const 1)) (i32.const {PAGE}))"
    wasm = table_guest("(drop (memory.grow (i32.const 1))) (i32.const 0)", alloc=grows)
    hosted, encoder, workers = Hosted(wasm), plain_encoder(), view(True, True, False)
    for load in range(1, 5):
        workers[2].load = load
        workers[2].touched()
        asked = request(entropy=load)
        assert hosted.decide(encoder, workers, asked) == 0
        assert hosted.records() == [
            record_of(worker, healthy, asked)
            for worker, healthy in zip(workers, workers.healthy, strict=True)
        ]
        assert hosted.request()[0] == load
        assert hosted.driver.pages == 1 + 2 + load


def test_pages_are_known_before_the_first_decision() -> None:
    assert Hosted(table_guest(memory='(memory (export "memory") 3)')).driver.pages == 3


def test_a_table_that_the_guest_overwrites_costs_nobody_else_anything() -> None:
    spoil = f"""
      (memory.fill (local.get $table) (i32.const 255)
        (i32.mul (local.get $count) (i32.const {RECORD_BYTES})))
      (memory.fill (local.get $request) (i32.const 255) (i32.const {RECORD_BYTES}))
      (i32.const 1)"""
    hosted, encoder, workers = Hosted(table_guest(spoil)), plain_encoder(), view(True, True)
    for _ in range(3):
        assert hosted.decide(encoder, workers, request()) == 1
    untouched = Hosted(table_guest("(i32.load offset=72 (local.get $table))"))
    workers[1].load = 4
    workers[1].touched()
    assert untouched.decide(encoder, workers, request()) == 4


def test_a_trap_in_select() -> None:
    with pytest.raises(wasmtime.Trap):
        decide(table_guest("(unreachable)"))


def test_tables_that_grow_are_allocated_anew_and_the_old_ones_freed() -> None:
    hosted, encoder = Hosted(table_guest()), plain_encoder()
    asked = request()
    for count in (1, 2, 40, 41, 900, 3):
        workers = view(*[True] * count)
        hosted.decide(encoder, workers, asked)
        assert hosted.records() == [record_of(worker, True, asked) for worker in workers]
    assert hosted.number("allocs") == 1 + 3, "one request record; 1, 40 and 900 workers"
    assert hosted.number("frees") == 2


def test_a_table_larger_than_all_that_the_guest_may_have() -> None:
    workers = view(*[True] * 900)
    hosted = Hosted(table_guest(), memory_bytes=PAGE)
    with pytest.raises(GuestError) as caught:
        hosted.decide(plain_encoder(), workers, request())
    assert caught.value.kind == "out_of_memory"
    assert "alloc(" in caught.value.detail


def test_an_input_larger_than_the_exchange_may_become() -> None:
    workers = view(*[True] * 1000)
    hosted = Hosted(table_guest(), memory_bytes=PAGE)
    with pytest.raises(GuestError) as caught:
        hosted.decide(plain_encoder(), workers, request())
    assert caught.value.kind == "out_of_memory"
    assert f"{ENTRIES_AT + 1000 * (4 + RECORD_BYTES):,}" in caught.value.detail


CONFIGURE = """
  (func (export "sgl_table_v1_configure") (param $ptr i32) (param $len i32) (result i32) {})"""


def test_the_configuration_is_handed_over_once_and_freed() -> None:
    keep = CONFIGURE.format(
        "(memory.copy (i32.const 16) (local.get $ptr) (local.get $len))"
        "(i32.store (i32.const 8) (i32.add (i32.load (i32.const 8)) (i32.const 1)))"
        "(i32.store (i32.const 12) (local.get $len)) (i32.const 0)"
    )
    config = b'{"threshold": 4}'
    hosted = Hosted(table_guest(extra=keep), config)
    hosted.decide(plain_encoder(), TWO, request())
    assert hosted.read(8, 8) == b"\1\0\0\0" + len(config).to_bytes(4, "little")
    assert hosted.read(16, len(config)) == config
    assert hosted.number("frees") == 1


@pytest.mark.parametrize("code", [1, -1, 77])
def test_a_configuration_that_the_plugin_refuses(code: int) -> None:
    with pytest.raises(GuestError) as caught:
        Hosted(table_guest(extra=CONFIGURE.format(f"(i32.const {code})")))
    assert caught.value.kind == "plugin_error"
    assert "sgl_table_v1_configure" in caught.value.detail
    assert str(code) in caught.value.detail


def test_a_guest_without_room_for_its_configuration() -> None:
    with pytest.raises(GuestError) as caught:
        Hosted(table_guest(alloc="(i32.const 0)", extra=CONFIGURE.format("(i32.const 0)")))
    assert caught.value.kind == "out_of_memory"


def test_a_trap_in_configure() -> None:
    with pytest.raises(wasmtime.Trap):
        Hosted(table_guest(extra=CONFIGURE.format("(unreachable)")))


def test_a_configuration_above_2_gigabytes_of_address() -> None:
    """Pointers are unsigned: this one is refused as one, and not taken for a negative number."""
    with pytest.raises(GuestError, match="0xf0000000"):
        Hosted(table_guest(alloc="(i32.const 0xF0000000)", extra=CONFIGURE.format("(i32.const 0)")))


TOLD = """
  (func (export "on_request_complete") (param $ptr i32) (param $len i32)
    (i32.store (i32.const 12) (local.get $len))
    (memory.copy (i32.const 16) (local.get $ptr) (local.get $len)))"""


def test_an_outcome_reaches_the_guest_and_is_freed() -> None:
    hosted = Hosted(table_guest(extra=TOLD))
    hosted.driver.report(b'{"success": true}')
    assert hosted.read(16, 17) == b'{"success": true}'
    assert (hosted.number("allocs"), hosted.number("frees")) == (1, 1)


def test_an_outcome_between_two_decisions_changes_no_table() -> None:
    hosted, encoder = Hosted(table_guest(extra=TOLD)), plain_encoder()
    asked = request()
    hosted.decide(encoder, TWO, asked)
    hosted.driver.report(b"x" * 1000)
    hosted.decide(encoder, TWO, asked)
    assert hosted.records() == [record_of(worker, True, asked) for worker in TWO]


def test_an_outcome_without_room() -> None:
    hosted = Hosted(table_guest(alloc="(i32.const 0)", extra=TOLD))
    with pytest.raises(GuestError) as caught:
        hosted.driver.report(b"{}")
    assert caught.value.kind == "out_of_memory"


@pytest.mark.parametrize("size", [1, 255, 256, 257, 1023, 1024, 5000, 70_000])
def test_the_text_and_its_prefixes(size: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(size))
    hosted, encoder = Hosted(table_guest()), TableEncoder({"request_text"}, 100_000)
    for _ in range(2):
        hosted.decide(encoder, TWO, request(b'{"prompt": "%b"}' % text.encode()))
        assert hosted.text() == text.encode()
        assert hosted.prefix_hashes() == [
            xxh3_64_intdigest(text[:end].encode()) for end in range(256, size + 1, 256)
        ]
    hosted.decide(encoder, TWO, request(b"{}"))
    assert hosted.request()[4:6] == (0, 0), "no text, and no pointer to where one was"
    assert hosted.request()[9:11] == (0, 0)


def test_longer_and_longer_texts_free_what_they_leave() -> None:
    hosted, encoder = Hosted(table_guest()), TableEncoder({"request_text"}, 1 << 20)
    for size in (10, 100, 1000, 3000, 20, 9000):
        hosted.decide(encoder, TWO, request(b'{"prompt": "%b"}' % (b"x" * size)))
        assert hosted.text() == b"x" * size
    assert hosted.number("allocs") - hosted.number("frees") == 3, "table, request and text"


def test_a_snapshot_says_all_and_leaves_nothing_behind() -> None:
    hosted, encoder = Hosted(table_guest("(local.get $count)")), plain_encoder()
    asked = request(entropy=5)
    hosted.decide(encoder, TWO, asked)
    others = view(True, False, True)
    others[1].load = 7
    assert hosted.driver.select_from(encoder.snapshot(others, asked)) == 3
    assert hosted.records() == [
        record_of(worker, healthy, asked)
        for worker, healthy in zip(others, others.healthy, strict=True)
    ]
    assert hosted.request()[0] == 5
    assert hosted.decide(encoder, TWO, asked) == 2
    assert hosted.records() == [record_of(worker, True, asked) for worker in TWO]


def test_a_snapshot_with_a_text() -> None:
    hosted, encoder = Hosted(table_guest()), TableEncoder({"request_text"}, 1000)
    workers = view(*[True] * 1000)
    asked = request(b'{"prompt": "%b"}' % (b"word " * 300))
    assert hosted.driver.select_from(encoder.snapshot(workers, asked)) == 0
    assert hosted.text() == (b"word " * 300)[:1000]
    assert len(hosted.prefix_hashes()) == 3
    assert hosted.records() == [record_of(worker, True, asked) for worker in workers]
    assert workers[0].watched_by == (), "it watches nobody"


def test_an_input_that_was_written_and_never_taken() -> None:
    """The next one makes up for it."""
    hosted, encoder, workers = Hosted(table_guest()), plain_encoder(), view(True, True)
    hosted.decide(encoder, workers, request())
    workers[0].load = 3
    workers[0].touched()
    encoder.encode(hosted.driver, workers, request())
    workers[1].load = 4
    workers[1].touched()
    asked = request()
    hosted.decide(encoder, workers, asked)
    assert hosted.records() == [record_of(worker, True, asked) for worker in workers]


def test_an_encoder_keeps_no_guest_alive(no_collector: None) -> None:
    encoder, hosted = plain_encoder(), Hosted(table_guest())
    hosted.decide(encoder, TWO, RequestView("r", "/"))
    token = weakref.ref(hosted.store)
    del hosted
    gc.collect()
    assert token() is None


def test_all_of_it_by_wasmtimes_public_calls() -> None:
    keep = CONFIGURE.format("(i32.store (i32.const 8) (local.get $len)) (i32.const 0)")
    wasm = table_guest("(i32.sub (local.get $count) (i32.const 3))", extra=keep + TOLD)
    hosted, encoder, asked = Hosted(wasm, calls=PublicCalls()), plain_encoder(), request()
    for count, chosen in ((5, 2), (2, None), (3, 0)):
        workers = view(*[True] * count)
        assert hosted.decide(encoder, workers, asked) == chosen
        assert hosted.records() == [record_of(worker, True, asked) for worker in workers]
    hosted.driver.report(b'{"success": true}')
    assert hosted.read(16, 17) == b'{"success": true}'
    with pytest.raises(GuestError, match="-2"):
        hosted.decide(encoder, view(True), asked)
