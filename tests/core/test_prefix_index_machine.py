"""The prefix index against naive readings of it, whatever is done in whatever order."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sgl_router.core.prefix_index import (
    HOLDER_CHARACTERS,
    MAX_TEXT_CHARACTERS,
    NODE_CHARACTERS,
    PrefixIndex,
)
from sgl_router.core.registry import Pool
from sgl_router.core.worker import Worker

POOLS: list[Pool] = [("regular", None), ("prefill", None), ("regular", "llama")]
pools = st.sampled_from(POOLS)
texts = st.text("ab中🙂", max_size=12)


def common(one: str, other: str) -> int:
    """How many characters two texts share."""
    return next((n for n in range(min(len(one), len(other)), 0, -1) if one[:n] == other[:n]), 0)


class ExactMachine(RuleBasedStateMachine):
    """Below its limit the index knows what a list of all texts knows."""

    @initialize()
    def start(self) -> None:
        self.index = PrefixIndex()
        self.workers = [Worker(f"http://engine-{n}") for n in range(4)]
        self.sent: list[tuple[Pool, str, Worker]] = []

    @rule(pool=pools, text=texts, which=st.integers(0, 3))
    def insert(self, pool: Pool, text: str, which: int) -> None:
        self.index.insert(pool, text, self.workers[which])
        self.sent.append((pool, text, self.workers[which]))

    @rule(which=st.integers(0, 3))
    def replace_worker(self, which: int) -> None:
        gone = self.workers[which]
        self.index.forget(gone)
        self.workers[which] = Worker(gone.url)
        self.sent = [one for one in self.sent if one[2] is not gone]

    @rule(which=st.integers(0, 3))
    def flush_worker(self, which: int) -> None:
        self.index.forget(self.workers[which])
        self.sent = [one for one in self.sent if one[2] is not self.workers[which]]

    @rule(pool=pools, text=texts)
    def match(self, pool: Pool, text: str) -> None:
        match = self.index.match(pool, text)
        held = {
            worker: max(
                (
                    common(text, sent)
                    for sent_to, sent, holder in self.sent
                    if sent_to == pool and holder is worker
                ),
                default=0,
            )
            for worker in self.workers
        }
        most = max(held.values())
        assert match.characters == most
        assert match.holders == {w for w, n in held.items() if n == most and n}
        assert match.holder_count == len(match.holders)
        assert match.holders == {w for w in self.workers if match.holds_most(w)}
        assert {worker: match.of(worker) for worker in self.workers} == held


class BoundedMachine(RuleBasedStateMachine):
    """At its limit it never exceeds it, never knows too much, and counts right."""

    @initialize(limit=st.integers(0, 12_000))
    def start(self, limit: int) -> None:
        self.limit = limit
        self.index = PrefixIndex(limit)
        self.workers = [Worker(f"http://engine-{n}") for n in range(3)]
        self.sent: set[tuple[Pool, str, Worker]] = set()

    @rule(
        pool=pools,
        text=texts,
        repeat=st.sampled_from([1, 1, 200]),
        which=st.integers(0, 2),
    )
    def insert(self, pool: Pool, text: str, repeat: int, which: int) -> None:
        text *= repeat
        self.index.insert(pool, text, self.workers[which])
        self.sent.add((pool, text, self.workers[which]))

    @rule(which=st.integers(0, 2))
    def replace_worker(self, which: int) -> None:
        self.index.forget(self.workers[which])
        self.workers[which] = Worker(f"http://engine-{which}")

    @rule(which=st.integers(0, 2))
    def flush_worker(self, which: int) -> None:
        self.index.forget(self.workers[which])
        self.sent = {one for one in self.sent if one[2] is not self.workers[which]}

    @rule(pool=pools, text=texts)
    def match(self, pool: Pool, text: str) -> None:
        match = self.index.match(pool, text)
        for worker in self.workers:
            assert match.of(worker) <= max(
                (
                    common(text, sent)
                    for sent_to, sent, holder in self.sent
                    if sent_to == pool and holder is worker
                ),
                default=0,
            )

    @invariant()
    def is_bounded(self) -> None:
        assert 0 <= self.index.size <= self.limit
        assert len(self.index) * NODE_CHARACTERS <= self.index.size

    def teardown(self) -> None:
        """A text that is larger than everything evicts it all, and leaves a size of nothing."""
        if hasattr(self, "index"):
            self.index.insert(POOLS[0], "z" * MAX_TEXT_CHARACTERS, self.workers[0])
            assert (self.index.size, len(self.index)) == (0, 0)
            assert not self.index._alone
            assert not self.index._forgotten


class OrderMachine(RuleBasedStateMachine):
    """Texts that share nothing are kept as a naive list of the least recently used keeps them."""

    @initialize(room=st.integers(1, 6))
    def start(self, room: int) -> None:
        cost = NODE_CHARACTERS + HOLDER_CHARACTERS + 10
        self.room = room
        self.index = PrefixIndex(NODE_CHARACTERS + room * cost)
        self.worker = Worker("http://engine")
        self.kept: list[str] = []

    @rule(letter=st.sampled_from("abcdefghij"))
    def insert(self, letter: str) -> None:
        self.index.insert(POOLS[0], letter * 10, self.worker)
        self.kept = [*(kept for kept in self.kept if kept != letter), letter][-self.room :]

    @invariant()
    def agrees(self) -> None:
        known = [c for c in "abcdefghij" if self.index.match(POOLS[0], c * 10).characters == 10]
        assert known == sorted(self.kept)


for machine in (ExactMachine, BoundedMachine, OrderMachine):
    machine.TestCase.settings = settings(deadline=None)
TestExact = ExactMachine.TestCase
TestBounded = BoundedMachine.TestCase
TestOrder = OrderMachine.TestCase
