"""The JSON encoding: what a plugin is given, and what is taken from it."""

from collections.abc import Collection
from typing import Any, get_args

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.policy import Outcome
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.abi.json_v1 import (
    EMPTY_STATE,
    MAX_ERROR_CHARACTERS,
    MAX_STATE_BYTES,
    JsonEncoder,
    PluginState,
    decode_answer,
)
from tests.wasm.guests import request, view

CHAT = orjson.dumps(
    {
        "model": "llama",
        "stream": True,
        "user": "u42",
        "messages": [{"role": "system", "content": "Be brief."}, {"content": "Hello"}],
    }
)


def encoded(
    body: bytes = CHAT,
    *,
    needs: Collection[str] = ("request_text",),
    cut: int = 1000,
    state: PluginState = EMPTY_STATE,
) -> Any:
    encoder = JsonEncoder({"a": [1, {"b": None}]}, needs=needs, max_text_bytes=cut)
    asked = request(body, entropy=2**53 - 1, now_ms=1_795_366_034_123)
    return orjson.loads(encoder.encode_request(view(True, False), asked, state))


def fails(result: bytes) -> DecisionError:
    with pytest.raises(DecisionError) as caught:
        decode_answer("plugin", result)
    assert caught.value.policy == "plugin"
    return caught.value


def test_the_input_has_exactly_the_fields_of_the_contract() -> None:
    assert encoded(state=EMPTY_STATE.merged("p", {"last": 7})) == {
        "workers": [
            {"url": "http://10.0.0.1:30000", "healthy": True, "load": 0},
            {"url": "http://10.0.0.1:30001", "healthy": False, "load": 0},
        ],
        "request_text": "Be brief. Hello",
        "config": {"a": [1, {"b": None}]},
        "state": {"last": 7},
        "request": {
            "id": "req-1",
            "path": "/v1/chat/completions",
            "model": "llama",
            "stream": True,
            "session": "u42",
            "attempt": 0,
            "text_bytes": 15,
        },
        "now_ms": 1_795_366_034_123,
        "entropy": 2**53 - 1,
    }


def test_a_request_without_a_body_has_no_text() -> None:
    made = encoded(b"")
    assert made["request_text"] is None
    assert made["request"]["text_bytes"] == 0
    assert made["request"]["model"] is None
    assert made["request"]["stream"] is False


def test_a_plugin_that_does_not_need_the_text_gets_null_but_its_size() -> None:
    made = encoded(needs=())
    assert made["request_text"] is None
    assert made["request"]["text_bytes"] == 15


@pytest.mark.parametrize(
    ("cut", "shown"), [(6, "añ€"), (5, "añ"), (4, "añ"), (3, "añ"), (2, "a"), (1, "a")]
)
def test_the_text_is_cut_at_a_character(cut: int, shown: str) -> None:
    made = encoded(orjson.dumps({"prompt": "añ€"}), cut=cut)
    assert made["request_text"] == shown
    assert made["request"]["text_bytes"] == 6


@given(st.text(max_size=40), st.integers(1, 60))
def test_any_text_is_cut_to_the_longest_beginning_that_fits(text: str, cut: int) -> None:
    made = encoded(orjson.dumps({"prompt": text}), cut=cut)
    full = text.encode()
    assert made["request"]["text_bytes"] == len(full)
    shown = made["request_text"] or ""
    assert text.startswith(shown)
    rest = text[len(shown) : len(shown) + 1].encode()
    assert len(shown.encode()) <= cut
    assert not rest or len(shown.encode()) + len(rest) > cut


def test_the_outcome_has_exactly_the_fields_of_the_contract() -> None:
    encoder = JsonEncoder({"a": 1}, needs=(), max_text_bytes=10)
    outcome = Outcome("http://a:1", False, None, None, 12.5, 3, "it broke off")
    assert orjson.loads(encoder.encode_outcome(outcome, EMPTY_STATE.merged("p", {"n": 1}))) == {
        "worker": "http://a:1",
        "success": False,
        "status": None,
        "ttft_ms": None,
        "duration_ms": 12.5,
        "output_chunks": 3,
        "error": "it broke off",
        "config": {"a": 1},
        "state": {"n": 1},
    }


@pytest.mark.parametrize(
    ("result", "answer"),
    [
        (b"{}", (None, None)),
        (b'{"selected_worker":null,"state":null,"error":null}', (None, None)),
        (b' {"selected_worker": 3, "more": [1]} ', (3, None)),
        (b'{"selected_worker":-1}', (-1, None)),
        (b'{"selected_worker":18446744073709551615}', (2**64 - 1, None)),
        (b'{"selected_worker":0,"state":{"a":null}}', (0, {"a": None})),
    ],
)
def test_an_answer(result: bytes, answer: tuple[int | None, dict[str, Any] | None]) -> None:
    assert decode_answer("plugin", result) == answer


@pytest.mark.parametrize(
    "value",
    [
        "1.0",
        "0.5",
        "-0.0",
        "1e2",
        '"0"',
        "true",
        "false",
        "[]",
        "[0]",
        "{}",
        "18446744073709551616",
    ],
)
def test_only_exact_integers_are_indexes(value: str) -> None:
    failure = fails(b'{"selected_worker":' + value.encode() + b"}")
    assert failure.kind == "out_of_range"


def test_an_index_is_shown_but_cut_and_escaped() -> None:
    failure = fails(orjson.dumps({"selected_worker": "\x1b[2J\n\u202e" + "x" * 10_000}))
    assert failure.kind == "out_of_range"
    assert failure.detail.isprintable()
    assert "\u202e" not in failure.detail
    assert len(failure.detail) < 300


@pytest.mark.parametrize("depth", [10, 300, 1000, 1022])
def test_an_index_nested_deeper_than_python_recurses(depth: int) -> None:
    failure = fails(b'{"selected_worker":' + b"[" * depth + b"]" * depth + b"}")
    assert failure.kind == "out_of_range"


@pytest.mark.parametrize(
    "result",
    [
        b"",
        b" ",
        b"null",
        b"0",
        b"[]",
        b'"{}"',
        b"{",
        b'{"selected_worker":0} {}',
        b'{"selected_worker":0}x',
        b'\xef\xbb\xbf{"selected_worker":0}',
        '{"selected_worker":0}'.encode("utf-16"),
        b'{"selected_worker":"\xff"}',
        b'{"selected_worker":NaN}',
        b'{"selected_worker":Infinity}',
        b'{"selected_worker":1e999}',
        b'{"selected_worker":' + b"9" * 5000 + b"}",
        b'{"selected_worker":01}',
        b"{'selected_worker':0}",
        b'{"selected_worker":0,}',
        b'{"error":"\\ud800"}',
        b"[" * 60_000,
        b'{"selected_worker":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
        b'{"state":[]}',
        b'{"state":"{}"}',
        b'{"state":0}',
        b'{"error":1}',
        b'{"error":false}',
        b'{"error":{"message":"x"}}',
    ],
)
def test_a_result_that_is_not_of_the_shape(result: bytes) -> None:
    failure = fails(result)
    assert failure.kind == "bad_output"
    assert len(failure.detail) < 300


def test_an_error_of_the_plugin_wins_over_everything_else() -> None:
    failure = fails(b'{"selected_worker":"x","state":7,"error":""}')
    assert failure.kind == "plugin_error"


def test_an_error_of_the_plugin_is_escaped() -> None:
    failure = fails(orjson.dumps({"error": "\x1b[31mred\nline %s <b>\u202e"}))
    assert failure.kind == "plugin_error"
    assert failure.detail == "\\x1b[31mred\\nline %s <b>\\u202e"


def test_an_error_of_the_plugin_is_cut() -> None:
    kept = fails(orjson.dumps({"error": "x" * MAX_ERROR_CHARACTERS})).detail
    assert kept == "x" * 1024
    cut = fails(orjson.dumps({"error": "x" * 1023 + "yzzz"})).detail
    assert cut.startswith("x" * 1023 + "y…")
    assert "1,027" in cut
    assert "z" not in cut


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.from_regex(rb'\{"(selected_worker|state|error)":.{0,40}\}')
)
def test_any_result_is_an_answer_or_a_typed_failure(result: bytes) -> None:
    try:
        index, state = decode_answer("plugin", result)
    except DecisionError as error:
        assert error.kind in get_args(FailureKind)
        assert error.detail.isprintable()
    else:
        assert index is None or type(index) is int
        assert state is None or isinstance(state, dict)


def merged(*patches: dict[str, Any]) -> PluginState:
    state = EMPTY_STATE
    for patch in patches:
        state = state.merged("p", patch)
    return state


def sent(state: PluginState) -> bytes:
    """A state as a plugin gets it."""
    return orjson.dumps(state.encoded)


def refused(state: PluginState, patch: dict[str, Any]) -> DecisionError:
    with pytest.raises(DecisionError) as caught:
        state.merged("p", patch)
    assert caught.value.kind == "bad_output"
    return caught.value


def test_state_is_merged_key_by_key_and_null_removes() -> None:
    state = merged({"a": 1, "b": {"x": 1}, "c": 3}, {"b": {"y": 2}, "c": None, "d": None})
    assert orjson.loads(sent(state)) == {"a": 1, "b": {"y": 2}}
    assert sent(state.merged("p", {"a": None, "b": None})) == b"{}"


def test_null_within_a_value_stays() -> None:
    assert orjson.loads(sent(merged({"a": {"b": None}}))) == {"a": {"b": None}}


def test_a_state_that_is_replaced_stays_as_it_was() -> None:
    before = merged({"a": [1]})
    before.merged("p", {"a": [2], "b": 3})
    assert sent(before) == b'{"a":[1]}'
    assert sent(EMPTY_STATE) == b"{}"


@pytest.mark.parametrize("patch", [{}, {"a": 1}, {"b": "x", "c": None}, {"d": False}])
def test_a_state_that_stays_the_same_is_not_encoded_again(patch: dict[str, Any]) -> None:
    state = merged({"a": 1, "b": "x", "d": False})
    assert state.merged("p", patch) is state


@pytest.mark.parametrize(
    ("before", "after"),
    [("1", "true"), ("0", "false"), ("1", "1.0"), ("0.0", "-0.0"), ("[1]", "[true]")],
)
def test_what_python_takes_for_equal_is_a_change(before: str, after: str) -> None:
    for first, second in ((before, after), (after, before)):
        state = merged(orjson.loads(f'{{"a":{first}}}'), orjson.loads(f'{{"a":{second}}}'))
        assert sent(state) == f'{{"a":{second}}}'.encode()


def test_state_may_be_exactly_its_limit() -> None:
    around = len(b'{"a":""}')
    state = merged({"a": "x" * (MAX_STATE_BYTES - around)})
    assert len(sent(state)) == MAX_STATE_BYTES == 65_536
    failure = refused(state, {"b": 1})
    assert "65,536" in failure.detail
    assert "65,542" in failure.detail, "six bytes more"


@pytest.mark.parametrize("depth", [300, 1000])
def test_state_nested_deeper_than_it_can_be_written(depth: int) -> None:
    refused(EMPTY_STATE, {"a": orjson.loads(b"[" * depth + b"]" * depth)})


_VALUES = st.none() | st.booleans() | st.integers(0, 2) | st.floats(0, 2) | st.text(max_size=2)
_PATCHES = st.dictionaries(
    st.text("ab", max_size=2), _VALUES | st.lists(_VALUES, max_size=2), max_size=4
)


@given(st.lists(_PATCHES, max_size=5))
def test_what_was_merged_last_counts(patches: list[dict[str, Any]]) -> None:
    expected: dict[str, Any] = {}
    for patch in patches:
        expected |= patch
    expected = {key: value for key, value in expected.items() if value is not None}
    # As text: Python takes 1, 1.0 and true for equal.
    found = orjson.loads(sent(merged(*patches)))
    assert orjson.dumps(found, option=orjson.OPT_SORT_KEYS) == orjson.dumps(
        expected, option=orjson.OPT_SORT_KEYS
    )
