"""What a dispatcher remembers of engines that drop their caches now and then."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker

WORKERS = 3
which = st.integers(0, WORKERS - 1)
texts = st.text("ab", min_size=1, max_size=8)


def common(one: str, other: str) -> int:
    """How many characters two texts share."""
    return next((n for n in range(min(len(one), len(other)), 0, -1) if one[:n] == other[:n]), 0)


class Chosen(Policy):
    """Takes the worker that it is told to, and looks at what all of them hold."""

    name = "chosen"
    needs = frozenset({"prefix_match"})
    index = 0
    characters = 0

    def __init__(self) -> None:
        self.holders: set[Worker] = set()
        self.held: dict[Worker, int] = {}

    def select_worker(self, workers: WorkerView, request: RequestView) -> int:
        match = request.prefix
        assert match is not None, "it needs one"
        self.characters, self.holders = match.characters, set(match.holders)
        self.held = {worker: match.of(worker) for worker in workers}
        return self.index


class FlushMachine(RuleBasedStateMachine):
    """It knows what was sent since each engine's last flush, under the workers' own names."""

    @initialize()
    def start(self) -> None:
        self.registry, self.policy, index = WorkerRegistry(), Chosen(), PrefixIndex()
        self.registry.on_remove.append(index.forget)
        self.dispatcher = Dispatcher(
            self.registry,
            self.policy,
            self.policy,
            entropy=lambda: 0,
            now_ms=lambda: 0,
            clock_ns=lambda: 0,
            prefixes=index,
        )
        for number in range(WORKERS):
            self.registry.add(Worker(f"http://engine-{number}", Health.UP))
        self.sent: list[tuple[str, Worker]] = []

    @rule(which=which, text=texts)
    def send(self, which: int, text: str) -> None:
        self.policy.index = which
        body = b'{"prompt": "%b"}' % text.encode()
        worker = self.dispatcher.dispatch(RequestView("id", "/v1/completions", body)).worker
        held = {
            each: max((common(text, s) for s, holder in self.sent if holder is each), default=0)
            for each in self.registry
        }
        most = max(held.values())
        assert self.policy.characters == most
        assert self.policy.holders == {each for each, n in held.items() if n == most and n}
        assert self.policy.held == held
        self.sent.append((text, worker))

    @rule(which=which)
    def flush(self, which: int) -> None:
        worker = list(self.registry)[which]
        self.dispatcher.forget_prefixes(worker)
        self.sent = [one for one in self.sent if one[1] is not worker]

    @rule(which=which)
    def replace(self, which: int) -> None:
        gone = list(self.registry)[which]
        self.registry.remove(gone)
        self.registry.add(Worker(gone.url, Health.UP))
        self.sent = [one for one in self.sent if one[1] is not gone]

    def teardown(self) -> None:
        """Workers that have gone leave nothing behind."""
        if hasattr(self, "registry"):
            for worker in list(self.registry):
                self.registry.remove(worker)
            assert not self.dispatcher._stand_ins.by_worker
            assert not self.dispatcher._stand_ins._workers


FlushMachine.TestCase.settings = settings(deadline=None)
TestFlushedCaches = FlushMachine.TestCase
