"""How long a plugin's decisions take on this machine. `sgl-router plugin bench` runs it."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sgl_router.devkit.target import Target
from sgl_router.testing.case import MAX_ENTROPY
from sgl_router.testing.host import PluginHost
from sgl_router.testing.pools import case, pool
from sgl_router.wasm.module import read_file

SIZES = (1, 8, 64, 512)
WARM_UP = 20
_LOOKS = 50
"""How often, in all, progress is told of one row."""

_GOLDEN_RATIO = 0x9E3779B97F4A7C15
"""Multiples of it, cut to 53 bits, are spread evenly: the entropies of a row."""


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Decisions among so many workers.

    Attributes:
        workers: how many.
        decisions: how many were timed.
        p50_us, p99_us, max_us: how long one took, the host's part included, in microseconds.
        memory_bytes: the most that its memory has had; 0 where no instance outlasts a decision.
        instances: how many it took; more than 1 where one was full, or each decides once.
        budget: the setting that bounds a decision of this plugin.
        budget_ms: what it says.
        p50_share, p99_share: of the budget, that the two take.
    """

    workers: int
    decisions: int
    p50_us: float
    p99_us: float
    max_us: float
    memory_bytes: int
    instances: int
    budget: Literal["inline_budget_ms", "max_execution_time_ms"]
    budget_ms: int
    p50_share: float
    p99_share: float


@dataclass(frozen=True, slots=True)
class Bench:
    """All of it.

    Attributes:
        plugin, abi: its name, and the contract that it keeps.
        lane: where a router has it decide.
        per_call: whether each decision has an instance of its own, which is gone after it.
        rows: one for each number of workers.
    """

    plugin: str
    abi: str
    lane: Literal["inline", "offload"]
    per_call: bool
    rows: Sequence[BenchRow]


def bench_plugin(
    target: Target,
    decisions: int,
    secs: float,
    sizes: Sequence[int] = SIZES,
    progress: Callable[[float], None] | None = None,
) -> Bench:
    """Time decisions.

    Args:
        decisions: for each row, at most.
        secs: for each row, at most; the decision under way is finished.
        progress: told how much of all is done, 0 to 1.

    Raises PluginRefused where it does not load, DecisionError where a decision fails.
    """
    with PluginHost(read_file(str(target.module)), target.config) as host:
        rows = []
        for number, size in enumerate(sizes):
            shares = (
                None
                if progress is None
                else lambda part, n=number: progress((n + part) / len(sizes))
            )
            rows.append(_row(host, size, decisions, secs, shares))
        return Bench(target.config.name, host.abi, host.lane, host.per_call, rows)


def _row(
    host: PluginHost,
    size: int,
    decisions: int,
    secs: float,
    progress: Callable[[float], None] | None,
) -> BenchRow:
    host.start()
    workers = pool(size)
    asked = case(workers)
    request = asked.request
    memory = 0
    for entropy in _entropies(WARM_UP):
        request.entropy = entropy
        host.select(workers, request)
    times: list[int] = []
    begun = time.perf_counter()
    told = 0.0
    for number, entropy in enumerate(_entropies(decisions)):
        request.entropy = entropy
        workers[number % size].load = number % 7
        workers[number % size].touched()
        started = time.perf_counter_ns()
        host.select(workers, request)
        times.append(time.perf_counter_ns() - started)
        memory = max(memory, host.memory_bytes)
        spent = time.perf_counter() - begun
        done = max((number + 1) / decisions, spent / secs)
        if progress is not None and (done >= told + 1 / _LOOKS or done >= 1):
            told = done
            progress(min(done, 1.0))
        if done >= 1:
            break
    return _counted(host, size, times, memory)


def _counted(host: PluginHost, size: int, times: list[int], memory: int) -> BenchRow:
    times.sort()
    settings = host.settings
    limit = settings.max_execution_time_ms
    inline = host.lane == "inline" and settings.inline_budget_ms < limit
    budget_ms = settings.inline_budget_ms if inline else limit
    p50_us, p99_us = _percentile(times, 0.5), _percentile(times, 0.99)
    return BenchRow(
        workers=size,
        decisions=len(times),
        p50_us=p50_us,
        p99_us=p99_us,
        max_us=times[-1] / 1000,
        memory_bytes=memory,
        instances=host.instances,
        budget="inline_budget_ms" if inline else "max_execution_time_ms",
        budget_ms=budget_ms,
        p50_share=p50_us / (budget_ms * 1000),
        p99_share=p99_us / (budget_ms * 1000),
    )


def _percentile(ordered: Sequence[int], share: float) -> float:
    """The smallest that so many are not above (nearest rank), in microseconds."""
    rank = -int(-share * len(ordered) // 1)
    return ordered[max(rank, 1) - 1] / 1000


def _entropies(count: int) -> Iterator[int]:
    return (number * _GOLDEN_RATIO & MAX_ENTROPY for number in range(count))
