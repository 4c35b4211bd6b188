"""What an engine says of itself at `/metrics`: three numbers out of some hundred thousand bytes.

A parser of the whole page would hold up every stream for tens of milliseconds. Here the page is
searched for the names that are wanted, and only the lines that begin with one are looked at.
"""

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from sgl_router.core.worker import EngineMetrics


class _Names(NamedTuple):
    """How one kind of engine calls its numbers; of `kv_usage` the first that is there counts."""

    queued: bytes
    running: bytes
    kv_usage: tuple[bytes, ...]


_ENGINES = (
    _Names(
        b"vllm:num_requests_waiting",
        b"vllm:num_requests_running",
        (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),  # the second before 0.9
    ),
    _Names(b"sglang:num_queue_reqs", b"sglang:num_running_reqs", (b"sglang:token_usage",)),
    _Names(
        b"llamacpp:requests_deferred",
        b"llamacpp:requests_processing",
        (b"llamacpp:kv_cache_usage_ratio",),
    ),
)

_SAMPLE = re.compile(
    # The labels, or none of them; then the value, which a timestamp may follow.
    rb"(?:[ \t]*+\{((?:[^\"}\n]++|\"(?:[^\"\\\n]++|\\.)*+\")*+)\}[ \t]*+|[ \t]++)"
    rb"([^ \t\r\n]++)[ \t\r\n]"
)
"""The rest of a line after its name (Prometheus' text format 0.0.4). Nothing in it is tried twice,
so that no line takes longer than it is long."""

_BREAKDOWN = re.compile(rb'\bpriority="[^"]')
"""SGLang's counts of each priority, which its count without a priority contains."""

_REPLICA = re.compile(rb'\b(?:tp_rank|pp_rank|moe_ep_rank|attn_cp_rank|pid)="[^"]*"')
"""Labels of processes that share one batch and each tell all of it; data-parallel ranks do not."""

MAX_SERIES = 512
"""Lines looked at for one name; more than any engine has ranks."""

MAX_LINE_BYTES = 4096
"""Of a line after its name."""

MAX_COUNT = 10**9
"""Requests; what is above cannot be meant."""


def parse_engine_metrics(page: bytes, at_ms: int) -> EngineMetrics | None:
    """What vLLM, SGLang or llama.cpp says on its metrics page; never raises.

    Counts of data-parallel ranks are added up, their cache usage is averaged. A value that is no
    number, not finite, negative or beyond all measure makes its reading unknown. Without both
    counts there is no telling how busy the engine is: that is None, as is a page of anything else.

    Args:
        page: Prometheus' text format.
        at_ms: when it was fetched, in Unix milliseconds.
    """
    page = b"\n%b\n" % page  # so that every line has its ends
    for names in _ENGINES:
        running = _count(page, names.running)
        if running is None:
            continue
        queued = _count(page, names.queued)
        if queued is not None:
            return EngineMetrics(queued, running, _usage(page, names.kv_usage), at_ms)
    return None


def _count(page: bytes, name: bytes) -> int | None:
    """The sum over the ranks, or None where it is not known."""
    total = _over_ranks(page, name, sum)
    return None if total is None or total > MAX_COUNT else round(total)


def _usage(page: bytes, names: Iterable[bytes]) -> float | None:
    """The mean over the ranks, or None where it is not known."""
    for name in names:
        usage = _over_ranks(page, name, lambda ranks: sum(ranks) / len(ranks))
        if usage is not None:
            return usage if usage <= 1 else None
    return None


def _over_ranks(page: bytes, name: bytes, combine: Callable[[list[float]], float]) -> float | None:
    """One value of all ranks' of a metric; None where it is absent or one of them is unusable."""
    ranks: dict[bytes, float] = {}
    line_end = b"\n" + name
    at = -1
    for _ in range(MAX_SERIES):
        at = page.find(line_end, at + 1)
        if at < 0:
            return combine(list(ranks.values())) if ranks else None
        start = at + len(line_end)
        sample = _SAMPLE.match(page, start, start + MAX_LINE_BYTES)
        if sample is None:
            if page[start : start + 1] in (b"{", b" ", b"\t"):
                return None
            continue  # a longer name
        labels = sample[1] or b""
        if _BREAKDOWN.search(labels):
            continue
        value = _number(sample[2])
        if value is None:
            return None
        rank = _REPLICA.sub(b"", labels)
        ranks[rank] = max(value, ranks.get(rank, 0.0))
    return None


def _number(text: bytes) -> float | None:
    """A number from 0 up, or None; infinity is too large for whatever it is asked for."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if value >= 0 else None
