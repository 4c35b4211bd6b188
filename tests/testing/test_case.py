"""Decision cases: an input of the JSON ABI becomes workers and a request that say the same."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.worker import Health
from sgl_router.errors import ConfigError
from sgl_router.testing import DecisionCase, load_input
from sgl_router.testing.case import MAX_ENTROPY, MAX_I32, MAX_WORKERS, too_much
from sgl_router.wasm.abi.json_v1 import JsonEncoder, PluginState
from sgl_router.wasm.manifest import KNOWN_NEEDS

PLAIN: dict[str, Any] = {
    "workers": [
        {"url": "http://10.0.0.1:1", "healthy": True, "load": 3},
        {"url": "http://10.0.0.2:1", "healthy": False, "load": 0},
    ],
    "request_text": "Hello",
    "config": {"a": 1},
    "state": {"last": 0},
    "request": {
        "id": "chatcmpl-1",
        "path": "/v1/chat/completions",
        "model": "llama",
        "stream": True,
        "session": "u42",
        "attempt": 1,
        "text_bytes": 5,
    },
    "now_ms": 1_795_366_034_123,
    "entropy": MAX_ENTROPY,
}

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
counts = st.integers(0, MAX_I32)
shares = st.floats(0, 1)


@st.composite
def workers(draw: st.DrawFn) -> list[dict[str, Any]]:
    """With all that a manifest may need."""
    made = []
    for index in range(draw(st.integers(0, 6))):
        worker = {
            "url": f"http://10.0.0.{index + 1}:30000",
            "healthy": draw(st.booleans()),
            "load": draw(counts),
            "pending_tokens": draw(st.integers(0, 2**60)),
            "prefix_match": draw(st.integers(0, 2**60)),
            "weight": draw(st.floats(0, 1e12)),
            "labels": draw(st.dictionaries(texts, texts, max_size=2)),
            "ttft_ms": draw(st.none() | st.floats(0, 1e9)),
            "id": f"{draw(counts):08x}-0000",
        }
        if draw(st.booleans()):
            said = {"queued": draw(counts), "running": draw(counts), "metrics_age_ms": 250}
            worker |= {**said, "kv_usage": draw(st.none() | shares)}
        else:
            worker |= dict.fromkeys(("queued", "running", "kv_usage", "metrics_age_ms"))
        made.append(worker)
    return made


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    text = draw(st.none() | texts)
    return {
        "workers": draw(workers()),
        "request_text": text,
        "config": {},
        "state": draw(st.dictionaries(texts, st.integers(-5, 5), max_size=3)),
        "request": {
            "id": draw(texts),
            "path": "/generate",
            "model": draw(st.none() | texts),
            "stream": draw(st.booleans()),
            "session": draw(st.none() | texts),
            "attempt": draw(st.integers(0, 3)),
            "text_bytes": len((text or "").encode()),
            "prompt_tokens": draw(st.integers(0, 2**60)),
        },
        "now_ms": draw(st.integers(1_000, 2**53)),
        "entropy": draw(st.integers(0, MAX_ENTROPY)),
    }


def said_again(case: DecisionCase) -> Any:
    """What a router would tell a plugin of it."""
    encoder = JsonEncoder(case.config or {}, needs=KNOWN_NEEDS, max_text_bytes=2**20)
    state = PluginState(dict(case.state), orjson.dumps(dict(case.state)))
    return orjson.loads(encoder.encode_request(case.workers, case.request, state))


@given(inputs())
def test_what_an_input_says_is_what_a_router_says_of_its_case(given: dict[str, Any]) -> None:
    case = DecisionCase.from_input(given)
    assert case.exact, (case.unsaid, case.malformed)
    assert said_again(case) == given


def test_a_case_of_the_plainest_input() -> None:
    case = DecisionCase.from_input(PLAIN)
    assert [worker.url for worker in case.workers] == ["http://10.0.0.1:1", "http://10.0.0.2:1"]
    assert case.workers.healthy == (True, False)
    assert [worker.health for worker in case.workers] == [Health.UP, Health.DOWN]
    assert (case.config, case.state) == ({"a": 1}, {"last": 0})
    assert case.exact


def test_a_text_that_the_plugin_does_not_read_still_has_its_length() -> None:
    request = {**PLAIN["request"], "text_bytes": 700}
    case = DecisionCase.from_input({**PLAIN, "request_text": None, "request": request})
    assert case.exact
    assert case.request.text == "x" * 700


@pytest.mark.parametrize(
    ("change", "unsaid"),
    [
        ({"later": 1}, "later"),
        ({"request": {**PLAIN["request"], "later": None}}, "request.later"),
        ({"request": {**PLAIN["request"], "session": ""}}, "request.session"),
        ({"request": {**PLAIN["request"], "text_bytes": 9}}, "request.text_bytes"),
        ({"workers": [{**PLAIN["workers"][0], "zone": 1}]}, "workers[0].zone"),
    ],
)
def test_what_no_router_says_is_noted(change: dict[str, Any], unsaid: str) -> None:
    case = DecisionCase.from_input({**PLAIN, **change})
    assert list(case.unsaid) == [unsaid]
    assert not case.malformed
    assert not case.exact


def _worker(**change: object) -> dict[str, Any]:
    return {"workers": [{**PLAIN["workers"][0], **change}]}


@pytest.mark.parametrize(
    ("change", "malformed"),
    [
        ({"workers": "many"}, "workers"),
        ({"workers": [7]}, "workers[0]"),
        ({"workers": PLAIN["workers"][:1] * 2}, "workers[1].url"),
        (_worker(url="10.0.0.1"), "workers[0].url"),
        (_worker(url="http://10.0.0.1:1/"), "workers[0].url"),
        (_worker(healthy=1), "workers[0].healthy"),
        (_worker(load="3"), "workers[0].load"),
        (_worker(load=-1), "workers[0].load"),
        (_worker(load=MAX_I32 + 1), "workers[0].load"),
        (_worker(load=True), "workers[0].load"),
        (_worker(weight=-1), "workers[0].weight"),
        (_worker(labels={"zone": 1}), "workers[0].labels"),
        (_worker(id="first"), "workers[0].id"),
        ({"entropy": MAX_ENTROPY + 1}, "entropy"),
        ({"now_ms": 1.5}, "now_ms"),
        ({"request_text": 5}, "request_text"),
        ({"state": []}, "state"),
        ({"config": "none"}, "config"),
        ({"request": {**PLAIN["request"], "model": 5}}, "request.model"),
        ({"request": 5}, "request"),
    ],
)
def test_what_no_router_can_say_is_noted(change: dict[str, Any], malformed: str) -> None:
    case = DecisionCase.from_input({**PLAIN, **change})
    assert malformed in case.malformed
    assert len(case.malformed) == 1
    said_again(case)  # something is said in its place


any_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(["workers", "request", "state", "config", "entropy", "now_ms", "later"])
worker_keys = st.sampled_from(["url", "healthy", "load", "labels", "id", "queued", "kv_usage"])


@given(
    st.dictionaries(keys, any_json | st.lists(st.dictionaries(worker_keys, any_json), max_size=3))
)
def test_any_object_is_a_case(given: dict[str, Any]) -> None:
    case = DecisionCase.from_input(given)
    assert len(case.workers) == len(case.workers.healthy)
    said_again(case)


def test_an_input_that_is_no_object_is_refused() -> None:
    assert load_input(b'{"workers": []}') == {"workers": []}
    for text in (b"{", b"[]", b"null"):
        with pytest.raises(ConfigError):
            load_input(text)


@pytest.mark.parametrize("id", ["-1234567", "１２３４", "0x12", "1_2", " 12", "+12", "12\n"])
def test_an_id_that_is_no_hexadecimal_number(id: str) -> None:
    worker = {**PLAIN["workers"][0], "id": id}
    case = DecisionCase.from_input({**PLAIN, "workers": [worker]})
    assert case.malformed == ("workers[0].id",)


def test_inputs_that_are_too_much() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"a": deep}
    assert too_much(PLAIN) is None
    for wrong in ({**PLAIN, "state": deep}, {**PLAIN, "workers": [{}] * (MAX_WORKERS + 1)}):
        assert too_much(wrong)
    text = b'{"state":' + b'{"a":' * 900 + b"1" + b"}" * 901
    with pytest.raises(ConfigError, match="the input"):
        load_input(text)
