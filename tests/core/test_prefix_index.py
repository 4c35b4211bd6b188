"""The prefix index: what it finds, what it forgets, what it costs."""

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.prefix_index import (
    HOLDER_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    NODE_CHARACTERS,
    PrefixIndex,
)
from sgl_router.core.registry import Pool
from sgl_router.core.worker import Worker

POOL: Pool = ("regular", None)
A, B, C = (Worker(f"http://{name}:8000") for name in "abc")
LEAF = NODE_CHARACTERS + HOLDER_CHARACTERS  # what a text costs besides its characters


def index_of(*texts: tuple[str, Worker], limit: int = 2**26) -> PrefixIndex:
    index = PrefixIndex(limit)
    for text, worker in texts:
        index.insert(POOL, text, worker)
    return index


def found(index: PrefixIndex, text: str, pool: Pool = POOL) -> tuple[int, set[Worker]]:
    match = index.match(pool, text)
    return match.characters, set(match.holders)


def test_an_empty_index_holds_nothing() -> None:
    index = PrefixIndex()
    match = index.match(POOL, "text")
    assert (match.characters, set(match.holders), match.of(A)) == (0, set(), 0)
    assert (index.size, len(index)) == (0, 0)


def test_an_empty_text_is_not_remembered_and_found_nowhere() -> None:
    index = index_of(("", A), ("text", A))
    assert len(index) == 1
    assert found(index, "") == (0, set())


@pytest.mark.parametrize(
    ("text", "characters", "holders"),
    [
        ("system prompt, one", 18, {A}),
        ("system prompt, one and more", 18, {A}),
        ("system prompt, two", 18, {B}),
        ("system prompt, three", 16, {B}),  # "t" is two's
        ("system prompt, four", 15, {A, B}),
        ("system", 6, {A, B}),
        ("systole", 4, {A, B}),
        ("other", 5, {C}),
        ("o", 1, {C}),
        ("prompt", 0, set()),
    ],
)
def test_the_workers_that_hold_most_of_a_text(
    text: str, characters: int, holders: set[Worker]
) -> None:
    index = index_of(("system prompt, one", A), ("system prompt, two", B), ("other", C))
    assert found(index, text) == (characters, holders)


def test_each_worker_holds_as_much_as_it_was_sent() -> None:
    index = index_of(("abcdef", A), ("abcxyz", B), ("ab", C))
    match = index.match(POOL, "abcdeZ")
    assert [match.of(worker) for worker in (A, B, C)] == [5, 3, 2]
    assert match.of(Worker("http://other")) == 0


def test_who_is_sent_a_shorter_text_holds_no_more_of_it() -> None:
    index = index_of(("abcdef", A), ("abc", B))
    assert found(index, "abcdef") == (6, {A})
    assert found(index, "abc") == (3, {A, B})


def test_a_conversation_on_one_worker_is_one_node_however_often_it_goes_on() -> None:
    index = index_of(*(("turn " * n, A) for n in range(1, 50)))
    assert len(index) == 1
    assert found(index, "turn " * 60) == (5 * 49, {A})


def test_what_a_worker_was_sent_before_takes_nothing_more() -> None:
    index = index_of(("one two three", A))
    size = index.size
    for text in ("one", "one two", "one two three"):
        index.insert(POOL, text, A)
    assert (len(index), index.size) == (1, size)


def test_a_conversation_that_moves_is_known_to_both() -> None:
    index = index_of(("one", A), ("one two", B), ("one two three", B))
    match = index.match(POOL, "one two three four")
    assert (match.characters, match.of(A), match.of(B)) == (13, 3, 13)


def test_pools_do_not_share_texts() -> None:
    index = PrefixIndex()
    index.insert(("regular", "llama"), "text", A)
    index.insert(("prefill", "llama"), "text", B)
    assert found(index, "text", ("regular", "llama")) == (4, {A})
    assert found(index, "text", ("prefill", "llama")) == (4, {B})
    assert found(index, "text", ("regular", None)) == (0, set())
    assert found(index, "text", ("regular", "")) == (0, set())


@pytest.mark.parametrize("text", ["ascii only", "ümlaut", "中文提示词", "emoji 🙂 and more 🙂"])
def test_texts_in_any_script_are_cut_at_characters(text: str) -> None:
    index = index_of((text + "one", A), (text + "two", B))
    assert found(index, text + "x") == (len(text), {A, B})
    assert found(index, text + "two") == (len(text) + 3, {B})


@pytest.mark.parametrize("place", [1, 2, 3, 511, 512, 513, 4_094, 4_095])
def test_a_long_text_is_left_at_any_place(place: int) -> None:
    text = "x" * 4_096
    index = index_of((text, A))
    other = text[:place] + "y" + text[place + 1 :]
    assert found(index, other) == (place, {A})
    index.insert(POOL, other, B)
    assert found(index, other) == (4_096, {B})
    assert found(index, text) == (4_096, {A})


# ---- bounds


def test_of_a_long_text_the_beginning_is_remembered() -> None:
    text = "0123456789" * 4_000
    index = index_of((text, A))
    assert found(index, text) == (MAX_TEXT_CHARACTERS, {A})
    assert index.size < MAX_TEXT_CHARACTERS + 1_500


def test_what_a_text_costs() -> None:
    index = index_of(("x" * 100, A))
    alone = index.size
    assert alone == 100 + LEAF + NODE_CHARACTERS  # the pool's own
    index.insert(POOL, "x" * 100, A)
    assert index.size == alone
    index.insert(POOL, "x" * 100, B)
    assert index.size == alone + HOLDER_CHARACTERS
    index.insert(POOL, "x" * 130, B)
    assert index.size == alone + HOLDER_CHARACTERS + 30 + LEAF


def test_the_least_recently_used_text_is_evicted_first() -> None:
    three = NODE_CHARACTERS + 3 * (LEAF + 100)
    index = index_of(*((letter * 100, A) for letter in "abc"), limit=three)
    index.insert(POOL, "a" * 100, A)
    index.insert(POOL, "d" * 100, A)
    assert [found(index, letter * 100)[0] for letter in "abcd"] == [100, 0, 100, 100]
    index.insert(POOL, "e" * 100, A)
    assert [found(index, letter * 100)[0] for letter in "abcde"] == [100, 0, 0, 100, 100]


def test_to_ask_is_not_to_use() -> None:
    two = NODE_CHARACTERS + 2 * (LEAF + 100)
    index = index_of(("a" * 100, A), ("b" * 100, A), limit=two)
    assert found(index, "a" * 100) == (100, {A})
    index.insert(POOL, "c" * 100, A)
    assert found(index, "a" * 100) == (0, set())


def test_what_texts_share_is_kept_for_longer_than_what_they_do_not() -> None:
    shared = "s" * 1_000
    limit = 2 * NODE_CHARACTERS + HOLDER_CHARACTERS + 1_000 + 3 * (LEAF + 100)
    index = index_of(*((shared + letter * 100, A) for letter in "abcdefgh"), limit=limit)
    assert [found(index, shared + c * 100)[0] for c in "efgh"] == [1_000, 1_100, 1_100, 1_100]


def test_a_text_larger_than_the_whole_index_leaves_it_empty() -> None:
    index = index_of(("a", A), ("b" * 5_000, B), limit=2_000)
    assert (index.size, len(index)) == (0, 0)


def test_many_pools_are_bounded_too() -> None:
    index = PrefixIndex(100_000)
    for n in range(2_000):
        index.insert(("regular", f"{n:01000}"), "text", A)
        assert index.size <= 100_000
    assert len(index) <= 100
    assert found(index, "text", ("regular", f"{0:01000}")) == (0, set())
    assert found(index, "text", ("regular", f"{1_999:01000}")) == (4, {A})


def test_a_path_of_many_nodes_is_followed_for_a_bounded_way() -> None:
    index = index_of(*(("a" * n, (A, B)[n % 2]) for n in range(1, 500)))
    assert len(index) == found(index, "a" * 500)[0] == 64


def test_so_is_one_that_was_made_longer_from_above() -> None:
    index = index_of(*(("a" * 2 * n, (A, B)[n % 2]) for n in range(1, 65)))
    assert found(index, "a" * 128)[0] == 128
    for place in range(1, 64, 2):
        index.insert(POOL, "a" * place + "b", C)
    assert found(index, "a" * 128)[0] == 64


# ---- forgetting workers


def test_a_forgotten_worker_holds_nothing() -> None:
    index = index_of(("system one", A), ("system one two", B))
    index.forget(B)
    match = index.match(POOL, "system one two three")
    assert (match.characters, set(match.holders)) == (10, {A})
    assert (match.of(A), match.of(B)) == (10, 0)
    index.forget(A)
    assert found(index, "system one") == (0, set())


def test_forgetting_takes_effect_though_nothing_was_ever_sent() -> None:
    index = index_of(("text", A))
    index.forget(B)
    assert found(index, "text") == (4, {A})


def test_what_a_forgotten_worker_is_sent_is_remembered_anew() -> None:
    index = index_of(("system one", A), ("system two", A), ("system", B))
    index.forget(A)
    index.insert(POOL, "system two", A)
    assert found(index, "system one") == (7, {A})  # "system ", of the second
    index.forget(A)
    assert found(index, "system two") == (6, {B})
    assert not index.match(POOL, "system two").holds_most(A)


def test_its_texts_can_be_sent_to_another() -> None:
    index = index_of(("system one", A), ("system two", A))
    index.forget(A)
    index.insert(POOL, "system one", B)
    assert found(index, "system one") == (10, {B})
    assert found(index, "system two") == (7, {B})


def test_a_used_text_costs_nothing_for_workers_that_are_gone() -> None:
    workers = [Worker(f"http://engine-{n}") for n in range(50)]
    index = index_of(*(("text", worker) for worker in workers))
    for worker in workers[1:]:
        index.forget(worker)
    index.insert(POOL, "text", workers[0])
    assert index.size == index_of(("text", A)).size


def test_a_forgotten_worker_is_let_go() -> None:
    worker = Worker("http://short-lived")
    before = sys.getrefcount(worker)
    index = index_of(("system one", A), ("system two", worker), ("three", worker), limit=6_000)
    assert sys.getrefcount(worker) > before
    index.forget(worker)
    for n in range(100):
        index.insert(POOL, f"{n:0100}", A)
    assert sys.getrefcount(worker) == before


def test_a_match_keeps_what_it_needs_and_no_more() -> None:
    """A match may live as long as its request; what is evicted after it must not."""
    worker = Worker("http://short-lived")
    index = index_of(("first", A), limit=4_000)
    match = index.match(POOL, "first")
    before = sys.getrefcount(worker)
    for n in range(100):
        index.insert(POOL, f"{n:0100}", worker)
    index.forget(worker)
    for n in range(100):
        index.insert(POOL, f"{n:0100}", A)
    assert sys.getrefcount(worker) == before
    assert match.of(A) == 5


@settings(deadline=None)
@given(
    st.text("ab", min_size=1, max_size=30),
    st.text("ab", min_size=1, max_size=30),
    st.integers(0, 3_000),
)
def test_two_texts_share_their_common_prefix(one: str, other: str, head: int) -> None:
    one, other = "x" * head + one, "x" * head + other
    common = next((i for i, (p, q) in enumerate(zip(one, other, strict=False)) if p != q), None)
    expected = min(len(one), len(other)) if common is None else common
    assert found(index_of((one, A)), other)[0] == expected
