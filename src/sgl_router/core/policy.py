"""What every load-balancing policy is: one decision function, and what it needs to know."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError

KNOWN_NEEDS = frozenset({"body", "pending_tokens", "prefix_match", "engine_metrics", "worker_info"})
"""What a policy may ask for, because each costs something to know:

- `body`: the request's body is complete before the decision, for its text, model or session;
- `pending_tokens`: `Worker.pending_tokens` is counted;
- `prefix_match`: `RequestView.prefix` is looked up, and the placement remembered;
- `engine_metrics`: `Worker.metrics` is polled;
- `worker_info`: nothing to keep, but much to tell a plugin.

`pending_tokens` and `prefix_match` imply `body`.
"""


@dataclass(slots=True)  # not frozen: that triples what making one costs, for every request
class Outcome:
    """How a request that was placed on a worker has ended.

    Attributes:
        worker_url: the worker that had it.
        success: whether the answer reached its end and its status was below 500.
        status: the engine's HTTP status, or None where it gave none.
        ttft_ms: from the request's arrival to the first byte of the answer's body, or None.
        duration_ms: from the request's arrival to its end.
        output_chunks: pieces in which the answer's body arrived.
        error: what went wrong, or None.
        engine_ok: what it says of the engine: True, it answered; False, it failed; None, nothing,
            as where the client left or the engine had too much to do (429).
    """

    worker_url: str
    success: bool
    status: int | None
    ttft_ms: float | None
    duration_ms: float
    output_chunks: int
    error: str | None
    engine_ok: bool | None = True


Choice = int | None | DecisionError
"""An index into the workers, None where no worker should take the request, or why there is none."""


class PendingChoice:
    """A choice that is being made elsewhere.

    Attributes:
        then: told of it, once and later, by whoever makes it; set by whoever waits for it.
        elapsed_ns: how long the choice itself took, once it has been made.
    """

    __slots__ = ("elapsed_ns", "then")

    def __init__(self) -> None:
        self.elapsed_ns = 0
        self.then: Callable[[Choice], None] | None = None

    def settle(self, choice: Choice) -> None:
        """It has been made. Nothing happens where nobody waits any more."""
        then, self.then = self.then, None
        if then is not None:
            then(choice)

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self.then = None


class Policy(ABC):
    """Chooses the worker for a request.

    A policy is a function of what it is given: randomness comes as `request.entropy` (53 random
    bits, new for each decision) and the time as `request.now_ms`, so that a decision can be
    replayed. It is never async, does no I/O and knows nothing of HTTP.

    Attributes:
        name: how the policy is called in options, listings and logs.
        needs: what must be known for a decision, some of `KNOWN_NEEDS`; without `body`, the body
            is passed on as it arrives instead of being collected first.
        fallback: the name of the built-in policy that decides where this one fails, or None.
        version: which version of it decides, where it has versions.
    """

    name: str
    needs: frozenset[str] = frozenset()
    fallback: str | None = None
    version: str | None = None

    @abstractmethod
    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Return an index into `workers`, or None where no worker should take the request.

        Called only where at least one worker is eligible, and returns an eligible one only.
        Raises DecisionError where the policy fails.
        """

    def choose(self, workers: WorkerView, request: RequestView) -> int | PendingChoice | None:
        """As `select_worker`, for a caller who can wait: what takes long is chosen elsewhere.

        A choice that was pending may name a worker that is not eligible any more.
        """
        return self.select_worker(workers, request)

    def on_request_complete(self, outcome: Outcome) -> None:  # noqa: B027 (optional, not abstract)
        """Learn how a request that this policy placed has ended. Must not raise."""
