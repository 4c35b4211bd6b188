"""The request's record of the table encoding, its text and its hashes."""

import re
from collections.abc import Collection
from pathlib import Path
from struct import Struct
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from sgl_router.wasm.abi.table_v1 import ALL_HEALTHY, TableEncoder
from tests.wasm.guests import request, view
from tests.wasm.table_guests import REQUEST, WORKER, Hosted, plain_encoder, table_guest

GUEST = table_guest()
ALL_NEEDS = frozenset({"request_text", "pending_tokens", "prefix_match", "engine_metrics"})

BODY = b'{"model": "llama", "user": "u42", "stream": true, "prompt": "%b"}'


def asked_of(
    body: bytes, needs: Collection[str], max_text_bytes: int = 1000, **more: Any
) -> tuple[Hosted, tuple[int, ...]]:
    hosted = Hosted(GUEST)
    made = request(body, entropy=2**53 - 1, now_ms=1_795_366_034_123)
    for name, value in more.items():
        setattr(made, name, value)
    hosted.decide(TableEncoder(needs, max_text_bytes), view(True), made)
    return hosted, hosted.request()


def test_the_requests_record() -> None:
    hosted, asked = asked_of(BODY % (b"x" * 400), ALL_NEEDS, attempt=3)
    text_ptr, prefix_ptr = asked[4], asked[9]
    assert asked == (
        2**53 - 1,
        1_795_366_034_123,
        xxh3_64_intdigest(b"u42"),
        xxh3_64_intdigest(b"llama"),
        text_ptr,
        400,
        3,
        1 | ALL_HEALTHY,
        100,
        prefix_ptr,
        1,
    )
    assert hosted.text() == b"x" * 400


def test_a_plugin_that_declines_the_body() -> None:
    hosted = Hosted(GUEST)
    made = request(BODY % b"text")
    hosted.decide(plain_encoder(), view(True), made)
    assert hosted.request() == (0, 0, 0, 0, 0, 0, 0, ALL_HEALTHY, 0, 0, 0)
    made.routing_key = "key"
    hosted.decide(plain_encoder(), view(True), made)
    assert hosted.request() == (0, 0, xxh3_64_intdigest(b"key"), 0, 0, 0, 0, ALL_HEALTHY, 0, 0, 0)


def test_names_with_what_utf_8_cannot_spell() -> None:
    """JSON can, with a lone surrogate in an escape."""
    _, asked = asked_of(b'{"prompt": "x"}', ALL_NEEDS, routing_key="\ud800")
    assert asked[2] == xxh3_64_intdigest(b"?")


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=600), st.integers(1, 700))
def test_the_text_is_cut_at_a_character(text: str, limit: int) -> None:
    hosted = Hosted(GUEST)
    made = request()
    made._text = text
    hosted.decide(TableEncoder({"request_text"}, limit), view(True), made)
    found = hosted.text()
    whole = text.encode("utf-8", "replace")
    assert whole.startswith(found)
    assert len(found) == len(whole) or limit - 4 < len(found) <= limit
    found.decode("utf-8")
    hashes = hosted.prefix_hashes()
    assert hashes == [xxh3_64_intdigest(found[:end]) for end in range(256, len(found) + 1, 256)]


# ---- the page for authors


_SIZES = {"u32": "I", "i32": "i", "f32": "f", "u64": "Q"}


@pytest.mark.parametrize(("heading", "record"), [("A worker", WORKER), ("The request", REQUEST)])
def test_the_page_says_where_each_number_stands(heading: str, record: Struct) -> None:
    page = (Path(__file__).parents[2] / "docs" / "abi-table.md").read_text("utf-8")
    section = page.partition(f"## {heading}: 64 bytes")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", section, re.MULTILINE)
    zero = re.search(r"^\| (\d+) \| \| zero", section, re.MULTILINE)
    assert zero is not None
    codes = "".join(_SIZES[kind] for _, kind in rows)
    offsets = [Struct("<" + codes[:number]).size for number in range(len(codes))]
    assert [int(at) for at, _ in rows] == offsets
    assert int(zero[1]) == Struct("<" + codes).size
    spelled = re.sub(r"(\d+)([A-Za-wyzQ])", lambda m: m[2] * int(m[1]), record.format)
    assert spelled == f"<{codes}{64 - int(zero[1])}x"
