"""Plugins that return nonsense; each case is named by its row of the catalogue.

Rows: 15 bytes that are no JSON, 16 indexes that are none, 17 workers that must not be picked, 19
errors, 23 states. Where a result fails, the guest itself is sound: its instance may stay.
"""

import logging

import pytest

from sgl_router.core.worker import Circuit, Health
from sgl_router.errors import RequestError
from tests.hostile import inside
from tests.hostile.modules import flood, parrot, say
from tests.hostile.outcomes import CUT, Memory, Stand, stand
from tests.wasm.guests import Bench

TEXT_BYTES = 200_000
LARGE = {"max_memory_bytes": 100 * 1024 * 1024}
TOO_LONG = "65,537"


async def parrot_stand(bench: Bench) -> Stand:
    return await stand(bench, parrot(), max_request_text_bytes=TEXT_BYTES)


def answer(value: str, key: str = "selected_worker") -> str:
    return f'{{"{key}": {value}}}'


def deep(levels: int) -> str:
    return f'{{"selected_worker": 0, "x": {"[" * levels}{"]" * levels}}}'


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "result",
    [
        pytest.param(b'{"selected_worker": 0, "x": "\xff"}', id="15-not-utf8"),
        pytest.param(b'{"selected_worker": 0, "x": "\xc0\x80"}', id="15-overlong-utf8"),
        pytest.param(b'{"selected_worker": 0, "x": "\xed\xa0\x80"}', id="15-surrogate-in-utf8"),
        pytest.param('{"selected_worker": 0, "x": "\\ud800"}', id="15-lone-surrogate"),
        pytest.param(b'\xef\xbb\xbf{"selected_worker": 0}', id="15-byte-order-mark"),
        pytest.param('{"selected_worker": 0}'.encode("utf-16"), id="15-utf16"),
        pytest.param('{"selected_worker": 0}'.encode("utf-16-be"), id="15-utf16-big-endian"),
        pytest.param("", id="15-empty"),
        pytest.param(" \t\r\n", id="15-white-space"),
        pytest.param('{"selected_worker": 0} x', id="15-trailing-text"),
        pytest.param('{"selected_worker": 0}{"selected_worker": 0}', id="15-two-objects"),
        pytest.param('{"selected_worker": 0', id="15-cut"),
        pytest.param("{'selected_worker': 0}", id="15-single-quotes"),
        pytest.param('{"selected_worker": 0,}', id="15-trailing-comma"),
        pytest.param('{"selected_worker": 0} // sound', id="15-comment"),
        pytest.param('{"selected_worker": 0, "x": "\n"}', id="15-raw-newline"),
        pytest.param(deep(30_000), id="15-30,000-levels"),
        pytest.param(answer("NaN"), id="15-nan"),
        pytest.param(answer("Infinity"), id="15-infinity"),
        pytest.param(answer("-Infinity"), id="15-minus-infinity"),
        pytest.param(answer("1e999"), id="15-1e999"),
        pytest.param(answer("00"), id="15-leading-zero"),
        pytest.param(answer("+1"), id="15-plus"),
        pytest.param(answer("0x0"), id="15-hexadecimal"),
        pytest.param("[0]", id="15-list"),
        pytest.param("0", id="15-number"),
        pytest.param('"0"', id="15-string"),
        pytest.param("null", id="15-null"),
    ],
)
async def test_what_is_not_a_json_object(bench: Bench, result: str | bytes) -> None:
    seat = await parrot_stand(bench)
    seat.fails_alone("bad_output", "JSON", say(result), thrown_away=False)


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    ("head", "eight", "times"),
    [
        pytest.param('{"selected_worker": 0, "x": "', "x" * 8, 1_250_000, id="15-10-MB"),
        pytest.param('{"selected_worker": 0, "x": ', "[" * 8, 12_500, id="15-100,000-levels"),
        pytest.param('{"error": "', "x" * 8, 6_250_000, id="19-error-of-50-MB"),
        pytest.param('{"state": {"a": "', "x" * 8, 1_250_000, id="23-state-of-10-MB"),
        pytest.param('{"state": {', '"abc":0,', 1_000_000, id="23-state-with-10^6-keys"),
    ],
)
async def test_a_result_too_long_to_be_parsed(
    bench: Bench, head: str, eight: str, times: int
) -> None:
    seat = await stand(bench, flood(head, eight, times), **LARGE)
    seat.fails_alone("bad_output", TOO_LONG)


@pytest.mark.parametrize("key", [pytest.param("selected_worker", id="15-duplicate-keys")])
async def test_of_two_values_of_a_key_the_last_counts(bench: Bench, key: str) -> None:
    """RFC 8259, section 4, leaves it open; what counts must be judged all the same."""
    seat = await parrot_stand(bench)
    seat.decides(say(f'{{"{key}": 7, "{key}": 1}}'), by=1)
    seat.falls_back("out_of_range", say(f'{{"{key}": 1, "{key}": 7}}'))


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "index",
    [
        pytest.param("3", id="16-count"),
        pytest.param("-1", id="16-minus-one"),
        pytest.param("2147483648", id="16-2^31"),
        pytest.param("4294967296", id="16-2^32"),
        pytest.param("9007199254740992", id="16-2^53"),
        pytest.param("18446744073709551615", id="16-2^64-1"),
        pytest.param("18446744073709551616", id="16-2^64"),
        pytest.param("-9223372036854775808", id="16-minus-2^63"),
        pytest.param("1" * 300, id="16-300-digits"),
        pytest.param("1.0", id="16-1.0"),
        pytest.param("0.0", id="16-0.0"),
        pytest.param("-0.0", id="16-minus-0.0"),
        pytest.param("1e0", id="16-1e0"),
        pytest.param('"0"', id="16-string"),
        pytest.param('""', id="16-empty-string"),
        pytest.param('"\\u001b[31m\\n"', id="16-escapes"),
        pytest.param("true", id="16-true"),
        pytest.param("false", id="16-false"),
        pytest.param("[0]", id="16-list"),
        pytest.param("{}", id="16-object"),
        pytest.param("[" * 500 + "]" * 500, id="16-deep-list"),
    ],
)
async def test_an_index_that_is_none(bench: Bench, index: str) -> None:
    seat = await parrot_stand(bench)
    seat.fails_alone("out_of_range", "selected_worker", say(answer(index)), thrown_away=False)


@pytest.mark.parametrize("digits", [pytest.param(5_000, id="15-integer-of-5,000-digits")])
async def test_an_integer_beyond_every_type(bench: Bench, digits: int) -> None:
    """Whether it is taken for no number or for no index, it is neither cut nor rounded to one."""
    seat = await parrot_stand(bench)
    decision = seat.dispatch(say(answer("1" * digits)))
    assert decision.failure is not None
    assert decision.failure.kind in ("bad_output", "out_of_range")
    seat.decides()


@pytest.mark.parametrize(
    "result",
    [
        pytest.param('{"selected_worker": null}', id="16-null"),
        pytest.param("{}", id="16-missing"),
        pytest.param('{"selected_worker": null, "error": null, "state": null}', id="16-all-null"),
    ],
)
async def test_none_is_an_answer(bench: Bench, result: str) -> None:
    seat = await parrot_stand(bench)
    with pytest.raises(RequestError) as caught:
        seat.dispatch(say(result))
    assert (caught.value.status, caught.value.code) == (503, "no_available_workers")
    assert not inside.failures(seat.plugin)
    assert seat.router.loads() == [0, 0, 0]
    seat.decides()


async def judged(seat: Stand, *, excluded: bool = False) -> None:
    """The second worker is picked, and must not be."""
    pick = say(answer("1"))
    tried = frozenset({seat.router.workers[1]}) if excluded else frozenset()
    failure = seat.falls_back("unhealthy_pick", pick, tried)
    assert seat.router.workers[1].url in failure.detail


@pytest.mark.parametrize(
    "health",
    [
        pytest.param(Health.DOWN, id="17-down"),
        pytest.param(Health.DRAINING, id="17-draining"),
        pytest.param(Health.UNKNOWN, id="17-unknown"),
    ],
)
async def test_a_worker_that_must_not_be_picked(bench: Bench, health: Health) -> None:
    seat = await parrot_stand(bench)
    registry, worker = seat.router.registry, seat.router.workers[1]
    seat.decides(say(answer("1")), by=1)
    registry.set_health(worker, health)
    await judged(seat)
    registry.set_health(worker, Health.UP)
    seat.decides(say(answer("1")), by=1)


@pytest.mark.parametrize("circuit", [pytest.param(Circuit.OPEN, id="17-breaker-open")])
async def test_a_worker_behind_an_open_breaker(bench: Bench, circuit: Circuit) -> None:
    seat = await parrot_stand(bench)
    seat.router.registry.set_circuit(seat.router.workers[1], circuit)
    await judged(seat)


@pytest.mark.parametrize("again", [pytest.param(say(answer("1")), id="17-excluded")])
async def test_a_worker_that_was_tried_already(bench: Bench, again: bytes) -> None:
    seat = await parrot_stand(bench)
    await judged(seat, excluded=True)
    seat.decides(again, by=1)


HOSTILE_TEXTS = [
    pytest.param("\\u001b[2J\\u001b]0;owned\\u0007", "\\x1b[2J\\x1b]0;owned\\x07", id="19-escapes"),
    pytest.param("a\\r\\nset-cookie: b=c", "a\\r\\nset-cookie: b=c", id="19-newlines"),
    pytest.param("%s %n %(name)s {0} {plugin}", "%s %n %(name)s {0} {plugin}", id="19-format"),
    pytest.param("<script>alert(1)</script>", "<script>", id="19-html"),
    pytest.param("\\u202egnp.exe", "\\u202egnp.exe", id="19-right-to-left"),
    pytest.param("a\\u0000b", "a\\x00b", id="19-nul"),
    pytest.param("\\u2028\\u0085", "\\u2028\\x85", id="19-line-separators"),
    pytest.param("x" * 60_000, "x" * 1024 + CUT, id="19-60-KB"),
    pytest.param("\\u001b" * 10_000, "\\x1b" * 1024, id="19-60-KB-of-escapes"),
    pytest.param("", "", id="19-empty"),
]


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(("error", "told"), HOSTILE_TEXTS)
async def test_a_plugins_own_error(
    bench: Bench, error: str, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What is told of it is one printable line of a bounded length."""
    caplog.set_level(logging.DEBUG, "sgl_router")
    seat = await parrot_stand(bench)
    body = say(f'{{"selected_worker": 0, "error": "{error}"}}')
    seat.fails_alone("plugin_error", told, body, thrown_away=False)
    lines = [record.getMessage() for record in caplog.records]
    assert any("plugin_error" in line for line in lines), "somebody is told"
    for line in lines:
        assert line.isprintable()
        assert len(line) < 11_000


@pytest.mark.parametrize(
    "result",
    [
        pytest.param('{"selected_worker": 0, "state": {1: 2}}', id="23-keys-that-are-numbers"),
        pytest.param('{"selected_worker": 0, "state": {null: 2}}', id="23-keys-that-are-null"),
        pytest.param('{"selected_worker": 0, "state": {"a": NaN}}', id="23-nan"),
        pytest.param('{"selected_worker": 0, "state": [1]}', id="23-list"),
        pytest.param('{"selected_worker": 0, "state": "n"}', id="23-string"),
        pytest.param('{"selected_worker": 0, "state": 1}', id="23-number"),
        pytest.param(
            f'{{"selected_worker": 0, "state": {{"a": {"[" * 300}{"]" * 300}}}}}',
            id="23-deeper-than-can-be-written",
        ),
        pytest.param('{"selected_worker": 7, "state": {"n": 2}}', id="23-of-a-failed-decision"),
    ],
)
async def test_a_state_that_is_refused(bench: Bench, result: str) -> None:
    seat = await parrot_stand(bench)
    kind = "out_of_range" if "7" in result else "bad_output"
    seat.fails_alone(kind, "", say(result), thrown_away=False)
    assert inside.state(seat.plugin) == {"n": 1}


@pytest.mark.parametrize(
    "patch",
    [
        pytest.param('{{"k{0}": "' + "x" * 8_000 + '"}}', id="23-grows-each-call"),
        pytest.param('{{"k{0}": "' + "\\u20ac" * 3_000 + '"}}', id="23-grows-in-utf8"),
        pytest.param(
            "{{" + ",".join(f'"{{0}}-{i}":0' for i in range(800)) + "}}",
            id="23-more-keys-each-call",
        ),
    ],
)  # fmt: skip
async def test_a_state_that_grows_without_end(bench: Bench, patch: str) -> None:
    seat = await parrot_stand(bench)
    seat.decides()
    before = Memory.now()
    accepted = 0
    while True:
        body = say(f'{{"selected_worker": 1, "state": {patch.format(accepted)}}}')
        kept = dict(inside.state(seat.plugin))
        decision = seat.dispatch(body)
        if decision.failure is not None:
            break
        assert len(inside.state(seat.plugin)) > len(kept)
        accepted += 1
    assert 2 <= accepted < 20, "some of it fits"
    assert decision.failure.kind == "bad_output"
    assert "65,536" in decision.failure.detail
    assert inside.state(seat.plugin) == kept
    seat.falls_back("bad_output", body)
    assert inside.state(seat.plugin) == kept
    seat.decides()
    seat.spares_its_neighbour()
    before.returned()


@pytest.mark.parametrize("size", [pytest.param(65_000, id="23-as-large-as-it-may-be")])
async def test_a_full_state_stays_usable(bench: Bench, size: int) -> None:
    """What was accepted is sent with every input, and can be removed again."""
    seat = await parrot_stand(bench)
    seat.decides(say(f'{{"selected_worker": 1, "state": {{"a": "{"x" * size}"}}}}'), by=1)
    seat.decides()
    seat.decides(say('{"selected_worker": 1, "state": {"a": null}}'), by=1)
    assert inside.state(seat.plugin) == {"n": 1}
