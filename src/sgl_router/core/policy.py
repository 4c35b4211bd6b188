"""What every load-balancing policy is: one decision function, and what it needs to know."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView

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
    """

    name: str
    needs: frozenset[str] = frozenset()
    fallback: str | None = None

    @abstractmethod
    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Return an index into `workers`, or None where no worker should take the request.

        Called only where at least one worker is eligible, and returns an eligible one only.
        Raises DecisionError where the policy fails.
        """

    def on_request_complete(self, outcome: Outcome) -> None:  # noqa: B027 (optional, not abstract)
        """Learn how a request that this policy placed has ended. Must not raise."""
