"""What policies may know of a request: text, model, session, from any body whatever."""

from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core import request as request_module
from sgl_router.core.request import RequestView


def view(body: object) -> RequestView:
    return RequestView("id", "/v1/chat/completions", orjson.dumps(body))


def chat(*contents: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (chat("one"), "one"),
        (chat("one", "two"), "one two"),
        (chat([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]), "one two"),
        (
            chat([{"type": "text", "text": "one"}, IMAGE, {"type": "text", "text": "two"}]),
            "one two",
        ),
        (chat([IMAGE]), None),
        (chat("one", None, "", "two"), "one two"),
        (chat(["plain", {"type": "text", "text": "part"}]), "plain part"),
        ({"messages": []}, None),
        ({"messages": ["no object", 7, {"role": "user"}]}, None),
        ({"messages": "no list", "prompt": "fallen back to"}, "fallen back to"),
        (chat("chat") | {"prompt": "completion", "tools": [{"name": "f"}]}, "chat"),
        ({"prompt": "one"}, "one"),
        ({"prompt": ["one", "two"]}, "one two"),
        ({"prompt": [15, 0, 7]}, "15 0 7"),
        ({"prompt": [[1, 2], [3]]}, "1 2 3"),
        ({"prompt": ""}, None),
        ({"prompt": [True, 1.5, None, "one"]}, "one"),
        ({"prompt": 5}, None),
        ({"text": "one"}, "one"),
        ({"text": ["one", "two"]}, "one two"),
        ({"input_ids": [1, 2, 3]}, "1 2 3"),
        ({"input_ids": [[1, 2], [3, 4]]}, "1 2 3 4"),
        ({"text": None, "input_ids": [1, 2]}, "1 2"),
        ({"text": "one", "input_ids": [1, 2]}, "one"),
        ({"input": "one"}, "one"),
        ({"input": ["one", "two"]}, "one two"),
        ({"input": [[1, 2], [3]]}, "1 2 3"),
        ({"input": "one", "instructions": "zero"}, "zero one"),
        ({"input": [{"role": "user", "content": "one"}], "instructions": "zero"}, "zero one"),
        (
            {
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "one"}, IMAGE]},
                    {"type": "function_call_output", "call_id": "c", "output": "tool"},
                    {"role": "assistant", "content": "two"},
                ]
            },
            "one two",
        ),
        ({"input": [{"text": "one"}, {"image": "AAAA"}]}, "one"),
        ({"text_1": "one", "text_2": ["two", "three"]}, "one"),
        ({"query": "one", "documents": ["two"]}, "one"),
        ({"documents": ["one", {"text": "two"}]}, "one two"),
        ({"model": "m"}, None),
        ({}, None),
    ],
)
def test_text(body: dict[str, object], text: str | None) -> None:
    assert view(body).text == text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no json",
        b'{"prompt": "cut',
        b"\xff\xfe",
        b"null",
        b"7",
        b'"text"',
        b'[{"prompt": 1}]',
    ],
)
def test_a_body_that_is_no_object_has_nothing_to_say(body: bytes) -> None:
    request = RequestView("id", "/generate", body)
    assert request.json == {}
    assert (request.text, request.model, request.session) == (None, None, None)
    assert not request.stream


def test_a_body_nested_deeper_than_the_stack() -> None:
    depth = 1_020  # orjson's own limit is 1,024
    nested = b'{"prompt": ' + b"[" * depth + b'"deep"' + b"]" * depth + b"}"
    assert RequestView("id", "/v1/completions", nested).text == "deep"


@pytest.mark.parametrize(
    ("body", "model", "stream", "session"),
    [
        ({"model": "m", "stream": True, "session_id": "s"}, "m", True, "s"),
        ({"user": "u"}, None, False, "u"),
        ({"session_id": "s", "user": "u"}, None, False, "s"),
        ({"session_id": "", "user": "u"}, None, False, "u"),
        ({"model": 7, "stream": "true", "session_id": 7, "user": ["u"]}, None, False, None),
        ({"model": "", "stream": 1}, None, False, None),
    ],
)
def test_model_stream_session(
    body: dict[str, object], model: str | None, stream: bool, session: str | None
) -> None:
    request = view(body)
    assert (request.model, request.stream, request.session) == (model, stream, session)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["text", "content", "prompt", "input", "type", "other"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
KEYS = ["messages", "prompt", "text", "input_ids", "input", "query", "documents", "user", "model"]


@settings(deadline=None)
@given(JSON | st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4))
def test_any_json_is_read_without_raising(body: object) -> None:
    request = view(body)
    assert request.text is None or request.text
    for value in (request.model, request.session):
        assert value is None or value
    assert isinstance(request.stream, bool)


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_without_raising(body: bytes) -> None:
    request = RequestView("id", "/generate", body)
    assert isinstance(request.json, dict)
    assert request.text is None or request.text


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_the_same_texts_as_messages_parts_prompts_and_inputs(texts: list[str]) -> None:
    parts = [{"type": "text", "text": text} for text in texts]
    bodies: list[dict[str, object]] = [
        chat(*texts),
        chat(parts),
        {"prompt": texts},
        {"text": texts},
        {"input": texts},
    ]
    assert {view(body).text for body in bodies} == {" ".join(texts)}


def test_nothing_is_parsed_before_it_is_asked_for_and_nothing_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parsed: list[bytes] = []

    class Spy:
        JSONDecodeError = orjson.JSONDecodeError

        @staticmethod
        def loads(body: bytes) -> Any:
            parsed.append(body)
            return orjson.loads(body)

    monkeypatch.setattr(request_module, "orjson", Spy)
    body = orjson.dumps(chat("one"))
    request = RequestView("id", "/v1/chat/completions", body)
    assert parsed == []
    first = request.text
    assert request.text is first
    assert (request.model, request.session, request.stream) == (None, None, False)
    assert parsed == [body]


@pytest.mark.parametrize("body", [b"[]", b"broken", b'{"messages": []}'])
def test_a_body_without_text_is_not_parsed_again_either(
    body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = RequestView("id", "/v1/chat/completions", body)
    assert request.text is None
    monkeypatch.setattr(request_module, "orjson", None)
    monkeypatch.setattr(request_module, "_routing_text", None)
    assert request.text is None
    assert request.model is None


@pytest.mark.parametrize(("routing_key", "session"), [("header", "header"), (None, "s"), ("", "s")])
def test_a_routing_key_in_a_header_is_the_session(routing_key: str | None, session: str) -> None:
    request = view({"session_id": "s", "user": "u"})
    request.routing_key = routing_key
    assert request.session == session


@pytest.mark.parametrize(("text", "tokens"), [("", 0), ("abc", 0), ("abcd", 1), ("中文" * 10, 5)])
def test_prompt_tokens_are_guessed_from_the_length(text: str, tokens: int) -> None:
    assert view({"prompt": text}).prompt_tokens == tokens


def test_a_new_request_has_tried_nobody_and_asks_for_nobody() -> None:
    request = view({})
    assert (request.attempt, request.excluded) == (0, frozenset())
    assert (request.target, request.routing_key, request.prefix) == (None, None, None)
