"""What is added to the bodies of disaggregated requests."""

from itertools import count
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.disaggregation import sglang_bootstrap, splice, vllm_decode, vllm_prefill
from sgl_router.core.worker import Worker
from sgl_router.errors import RequestError

PREFILL = Worker("http://10.0.0.7:30001", role="prefill", bootstrap_port=8998)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(st.text(), json_values, min_size=1, max_size=6)


@given(objects, objects, st.sampled_from([b"", b" ", b"\n\t \r\n"]))
def test_splicing_adds_the_keys_and_changes_no_other_byte(
    body: dict[str, Any], added: dict[str, Any], blank: bytes
) -> None:
    before = blank + orjson.dumps(body, option=orjson.OPT_INDENT_2) + blank
    after = splice(before, added)
    assert orjson.loads(after) == {**body, **added}
    assert after.startswith(before.rstrip()[:-1])


def test_of_two_equal_keys_the_router_s_counts() -> None:
    after = splice(b'{"bootstrap_room": 1, "text": "x"}', {"bootstrap_room": 2})
    assert orjson.loads(after)["bootstrap_room"] == 2


def test_numbers_are_not_rounded() -> None:
    assert b"0.1000000000000000055511151231257827" in splice(
        b'{"t": 0.1000000000000000055511151231257827}', {"a": 1}
    )


@pytest.mark.parametrize(
    ("request_body", "rooms"),
    [
        ({"text": "one"}, None),
        ({"text": ["one", "two", "three"]}, 3),
        ({"text": []}, 0),
        ({"input_ids": [1, 2, 3]}, None),
        ({"input_ids": [[1, 2], [3]]}, 2),
        ({"prompt": ["a", "b"]}, 2),
        ({"prompt": [1, 2, 3]}, None),
        ({"prompt": [[1], [2]]}, 2),
        ({"messages": [{"role": "user", "content": "hi"}]}, None),
    ],
)
def test_each_prompt_of_a_batch_has_a_room_of_its_own(
    request_body: dict[str, Any], rooms: int | None
) -> None:
    drawn = count(7)
    added = sglang_bootstrap(request_body, PREFILL, lambda: next(drawn))
    if rooms is None:
        assert added == {
            "bootstrap_host": "10.0.0.7",
            "bootstrap_port": 8998,
            "bootstrap_room": 7,
        }
    else:
        assert added == {
            "bootstrap_host": ["10.0.0.7"] * rooms,
            "bootstrap_port": [8998] * rooms,
            "bootstrap_room": list(range(7, 7 + rooms)),
        }


def test_the_vllm_prefill_engine_makes_one_token_and_keeps_the_blocks() -> None:
    body = orjson.loads(
        vllm_prefill(
            "/v1/completions",
            {
                "prompt": "p",
                "stream": True,
                "stream_options": {"include_usage": True},
                "max_tokens": 200,
                "max_completion_tokens": 300,
                "min_tokens": 5,
                "temperature": 0,
            },
        )
    )
    assert body.pop("kv_transfer_params")["do_remote_decode"] is True
    assert body == {
        "prompt": "p",
        "stream": False,
        "max_tokens": 1,
        "max_completion_tokens": 1,
        "min_tokens": 1,
        "temperature": 0,
    }


def test_the_responses_api_has_a_limit_of_its_own_name() -> None:
    body = orjson.loads(vllm_prefill("/v1/responses", {"input": "p", "max_output_tokens": 200}))
    assert body["max_output_tokens"] == 1


def test_the_decode_engine_can_join_an_ipv6_host_and_a_port() -> None:
    prefill = Worker("http://[::1]:30001", role="prefill", bootstrap_port=8998)
    added = sglang_bootstrap({"text": "p"}, prefill, lambda: 7)
    assert added["bootstrap_host"] == "[::1]"


def test_the_vllm_decode_engine_is_told_where_the_blocks_are() -> None:
    params = {"do_remote_prefill": True, "remote_block_ids": [1, 2], "remote_host": "10.0.0.7"}
    answer = orjson.dumps({"choices": [], "kv_transfer_params": params})
    assert orjson.loads(vllm_decode(b'{"prompt": "p"}', answer)) == {
        "prompt": "p",
        "kv_transfer_params": params,
    }


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"kv_transfer_params": null}', b"\xff"])
def test_an_answer_without_the_blocks_place_is_the_engine_s_fault(answer: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        vllm_decode(b'{"prompt": "p"}', answer)
    assert caught.value.status == 502
