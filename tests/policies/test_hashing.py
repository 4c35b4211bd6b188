"""Consistent hashing: whose key it is, what changes when workers do, and when it is passed on."""

import hashlib
import struct
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerView
from sgl_router.core.worker import Worker
from sgl_router.policies import ConsistentHashing, PrefixHash
from sgl_router.policies.hashing import VIRTUAL_NODES, Ring
from tests.policies.pools import ENTROPY, ask, request_of, seen_as, view_of

KEYS = [f"session-{n}" for n in range(60)]

GOLDEN = [3, 0, 4, 3, 4, 0, 3, 4, 2, 3, 3, 1, 2, 3, 4, 1, 3, 1, 3, 1]  # owners of the first twenty

both = pytest.mark.parametrize("policy_type", [ConsistentHashing, PrefixHash], ids=lambda p: p.name)


def owners(policy: Policy, view: WorkerView, keys: list[str] = KEYS) -> dict[str, str]:
    """The URL of the worker that each key goes to; the key is the prompt, so both read it."""
    return {key: view[ask(policy, view, text=key)].url for key in keys}


def naive_walk(workers: list[Worker], key: str) -> list[Worker]:
    """The whole ring as one sorted list, from the key's place on."""
    ring = sorted(
        (point, worker.url, worker)
        for worker in workers
        for point in struct.unpack("<150Q", hashlib.shake_128(worker.url.encode()).digest(1200))
    )
    at = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")
    return [w for p, _, w in ring if p >= at] + [w for p, _, w in ring if p < at]


@both
def test_a_key_has_one_owner_whatever_the_entropy(policy_type: type[Policy]) -> None:
    view, policy = view_of([0] * 8), policy_type()
    for key in KEYS:
        assert len({ask(policy, view, n * 7_919, text=key) for n in range(10)}) == 1


def test_the_owners_are_the_same_in_every_process_and_version() -> None:
    """Written down: routers side by side, and before and after a restart, must agree."""
    chosen = [ask(ConsistentHashing(), view_of([0] * 5), key=key) for key in KEYS[:20]]
    assert chosen == GOLDEN


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.booleans()), min_size=1, max_size=7),
    st.sampled_from(KEYS),
    st.booleans(),
)
def test_the_first_on_the_ring_who_is_eligible_and_not_overloaded(
    pool: list[tuple[int, bool]], key: str, by_prompt: bool
) -> None:
    down = [i for i, (_, up) in enumerate(pool) if not up and i]
    view = view_of([load for load, _ in pool], down)
    loads = [view[i].load for i in view.eligible]
    mean = sum(loads) / len(loads)
    limit = max(1.25 * mean, mean + 10)
    expected = next(
        worker for worker in naive_walk(list(view), key) if worker.healthy and worker.load <= limit
    )
    policy = PrefixHash() if by_prompt else ConsistentHashing()
    assert view[ask(policy, view, text=key)] is expected


@both
@settings(deadline=None, max_examples=25)
@given(count=st.integers(2, 8), data=st.data())
def test_a_worker_that_goes_takes_only_its_own_keys_with_it(
    policy_type: type[Policy], count: int, data: st.DataObject
) -> None:
    workers = list(view_of([0] * count))
    gone = data.draw(st.integers(0, count - 1))
    policy = policy_type()
    before = owners(policy, seen_as(workers))
    after = owners(policy, seen_as(workers, without=[gone]))
    down = owners(policy, seen_as(workers, [gone]))
    again = owners(policy, seen_as(workers))
    for key in KEYS:
        if before[key] != workers[gone].url:
            assert after[key] == before[key]
    assert down == after
    assert again == before


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)))
def test_the_order_of_the_pool_makes_no_difference(order: list[int]) -> None:
    workers = list(view_of([0] * 6))
    shuffled = seen_as([workers[i] for i in order])
    assert owners(ConsistentHashing(), shuffled) == owners(ConsistentHashing(), seen_as(workers))


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sets(st.integers(0, 6), max_size=6), min_size=1, max_size=6))
def test_a_ring_that_has_changed_is_as_one_made_anew(absent: list[set[int]]) -> None:
    workers, policy = list(view_of([0] * 7)), ConsistentHashing()
    for gone in absent:
        view = seen_as(workers, without=sorted(gone))
        assert owners(policy, view, KEYS[:10]) == owners(ConsistentHashing(), view, KEYS[:10])


def test_shares_are_about_even() -> None:
    view, policy = view_of([0] * 10), ConsistentHashing()
    shares = Counter(ask(policy, view, key=f"key {n}") for n in range(5_000))
    assert len(shares) == 10
    assert max(shares.values()) < 1.35 * 500
    assert min(shares.values()) > 0.65 * 500


@pytest.mark.parametrize("start", [0, 1, 2**56 - 1, 2**56, 2**63, 2**64 - 1])
def test_the_ring_is_walked_once_round_from_anywhere(start: int) -> None:
    workers, ring = list(view_of([0] * 3)), Ring()
    for worker in workers:
        ring.add(worker)
    assert Counter(ring.walk(start)) == dict.fromkeys(workers, VIRTUAL_NODES)
    ring.remove(workers[1])
    assert Counter(ring.walk(start)) == dict.fromkeys(workers[::2], VIRTUAL_NODES)


def test_a_pool_in_which_one_of_many_is_left() -> None:
    view = view_of([0] * 30, down=range(29))
    assert set(owners(ConsistentHashing(), view).values()) == {view[29].url}


# ---- bounded loads


def test_a_busy_owner_keeps_its_keys_while_the_others_are_as_busy() -> None:
    idle, busy = view_of([0] * 4), view_of([1_000] * 4)
    assert owners(ConsistentHashing(), idle) == owners(ConsistentHashing(), busy)


@pytest.mark.parametrize(
    ("load", "others", "kept"),
    [
        (13, 0, True),  # 13 is not above 3.25 + 10
        (14, 0, False),
        (140, 100, False),  # the mean is 110, and 137.5 is allowed
        (130, 100, True),
    ],
)
def test_an_owner_with_too_much_to_do_is_passed_over(load: int, others: int, kept: bool) -> None:
    view = view_of([others] * 4)
    policy, key = ConsistentHashing(), "key"
    owner = ask(policy, view, key=key)
    view[owner].load = load
    assert (ask(policy, view, key=key) == owner) is kept
    view[owner].load = others
    assert ask(policy, view, key=key) == owner


@settings(deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=8), st.text(min_size=1, max_size=5))
def test_nobody_gets_more_who_is_above_the_bound(loads: list[int], key: str) -> None:
    view = view_of(loads)
    mean = sum(loads) / len(loads)
    assert loads[ask(ConsistentHashing(), view, key=key)] <= max(1.25 * mean, mean + 10)


# ---- keys


def choice(policy: Policy, *, text: str | None = None, key: str | None = None) -> int:
    return ask(policy, view_of([0] * 200), text=text, key=key)


def test_the_routing_key_then_the_session_then_the_prompt() -> None:
    policy, view = ConsistentHashing(), view_of([0] * 200)
    by_key = {
        body: {ask_body(policy, view, body, key) for key in ("key", None)}
        for body in (b'{"user":"u","prompt":"p"}', b'{"user":"u"}', b'{"prompt":"p"}', b"")
    }
    owner = choice(policy, key="key")
    user, prompt = choice(policy, key="u"), choice(policy, key="p")
    assert by_key[b'{"user":"u","prompt":"p"}'] == by_key[b'{"user":"u"}'] == {owner, user}
    assert by_key[b'{"prompt":"p"}'] == {owner, prompt}
    assert len({owner, user, prompt}) == 3


def ask_body(policy: Policy, view: WorkerView, body: bytes, key: str | None) -> int:
    request = request_of(key=key)
    request.body = body
    index = policy.select_worker(view, request)
    assert index is not None
    return index


def test_prefix_hash_reads_the_prompt_and_nothing_else() -> None:
    policy = PrefixHash()
    assert choice(policy, text="prompt", key="one") == choice(policy, text="prompt", key="two")
    assert choice(policy, text="prompt") == choice(ConsistentHashing(), key="prompt")


@pytest.mark.parametrize("policy_type", [ConsistentHashing, PrefixHash])
def test_prompts_that_begin_alike_for_1024_characters_go_to_one_worker(
    policy_type: type[Policy],
) -> None:
    head = "x" * 1_023
    policy = policy_type()
    same = {choice(policy, text=head + "y" + rest) for rest in ("", "1", "2" * 5_000)}
    assert len(same) == 1
    assert len({choice(policy, text=head + last) for last in "abcdefgh"}) > 1


@both
@settings(deadline=None)
@given(entropy=ENTROPY)
def test_without_a_key_the_less_loaded_of_two(policy_type: type[Policy], entropy: int) -> None:
    view, policy = view_of([9, 1]), policy_type()
    assert ask(policy, view, entropy) == 1
    assert ask(policy, view, entropy, text="") == 1


def test_any_text_is_a_key() -> None:
    policy, view = ConsistentHashing(), view_of([0] * 3)
    for key in ("", "ü", "中文", "🙂", "\x00", "\udc80", "x" * 100_000):
        assert ask(policy, view, key=key, text="text") in (0, 1, 2)


def test_pools_have_rings_of_their_own() -> None:
    policy = ConsistentHashing()
    one, other = view_of([0] * 3), view_of([0] * 5, model="m")
    expected = owners(ConsistentHashing(), one), owners(ConsistentHashing(), other)
    for _ in range(3):
        assert (owners(policy, one), owners(policy, other)) == expected
