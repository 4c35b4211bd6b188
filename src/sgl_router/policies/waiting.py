"""How long a request would wait at a worker, as far as its engine's metrics tell.

    wait = (tokens queued + tokens sent since) / 2,000 a second + 0.15 s · k / (1 − k)

with k the engine's share of KV cache in use: one that is nearly full must free blocks, or put
requests off, before it begins on another. Waits are only compared, so that they are in tokens here:
what an engine works through in that time.
"""

from sgl_router.core.worker import EngineMetrics

FRESH_MS = 5_000
"""Metrics of this age or older are not used: the engine has missed several polls (one a second by
default), and what it had queued then says nothing of now."""

_FRESH_POLLS = 3
"""Where engines are polled more seldom, theirs are used for so long."""

REQUEST_TOKENS = 512
"""Assumed of a request of which nothing is known."""

_TOKENS_PER_SECOND = 2_000
_KV_TOKENS = 0.15 * _TOKENS_PER_SECOND
_FULL = 0.99  # as full as it is taken to be, so that nobody waits for ever


def fresh_ms(interval_secs: float) -> float:
    """How old metrics may be that are polled every so many seconds."""
    return max(FRESH_MS, _FRESH_POLLS * interval_secs * 1_000)


def is_fresh(metrics: EngineMetrics, now_ms: int, fresh_ms: float) -> bool:
    """Whether what an engine said of itself is of now, more or less."""
    return now_ms - metrics.at_ms < fresh_ms


def kv_tokens(metrics: EngineMetrics) -> float:
    """What the use of its KV cache makes a request wait; nothing where it does not say."""
    usage = metrics.kv_usage
    if usage is None:
        return 0.0
    usage = min(usage, _FULL)
    return _KV_TOKENS * usage / (1 - usage)
