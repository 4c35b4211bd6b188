"""What a plugin that traps costs: the request whose decision it was, and the next one.

Hard about it: the two share the cost. The request whose decision traps gets wasmtime's trap, with
its backtrace, as an error, the dead instance thrown away, and the fallback policy's choice; the
next one gets a new instance made. So both are timed, through `Dispatcher.begin` as a request would,
and what they take more than two decisions that are good is the price of one trap. One decision in
`--every` traps, which is too few for a quarantine; the instance has a memory and constants as large
as the shipped plugins' have.

    python benchmarks/trap.py [--traps 1000] [--every 10] [--workers 8]

Ends with status 1 where the price is not below a millisecond in the median.
"""

import argparse
import asyncio
import logging
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from plugins import TRAPPING_ENTROPY, trapping_json, trapping_table
from tables import table
from workload import PATH, quantile, worker_urls

from sgl_router.core.decision import Decision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.policies import PolicyFactory, WasmPolicyConfig
from sgl_router.wasm.runtime import RuntimeOptions

BAR_US = 1000.0
DATA_BYTES, PAGES = 16_000, 3
"""Constants and memory of a plugin in Rust that knows JSON."""

LEAST_EVERY = 5
"""A quarter of the last hundred decisions is what brings a plugin into quarantine."""

GOOD_ENTROPY = 1
LIMIT_MS = 100
"""Of a decision, on the event loop too: one that was kept off the CPU is still taken there."""


@dataclass(frozen=True)
class Times:
    """In µs: of decisions that trap, of those next to them, of all others; and for each trap what
    the first two took more than two medians of the others."""

    trapping: list[float]
    following: list[float]
    good: list[float]

    @property
    def price(self) -> list[float]:
        normal = 2 * quantile(sorted(self.good), 0.5)
        pairs = zip(self.trapping, self.following, strict=True)
        return [trapping + following - normal for trapping, following in pairs]


class Placing:
    """A dispatcher whose every so manieth decision traps.

    Attributes:
        timeouts: decisions that took longer than the limit.
    """

    def __init__(self, factory: PolicyFactory, workers: int, every: int) -> None:
        registry = WorkerRegistry()
        for url in worker_urls([8001], workers):
            registry.add(Worker(url, Health.UP))
        policy, fallback = factory.create_by_name("plugin"), factory.create_by_name("power_of_two")
        assert policy is not None and fallback is not None, "loaded, and built in"
        self._every = every
        self._number = 0
        self.timeouts = 0
        self._dispatcher = Dispatcher(
            registry,
            policy,
            fallback,
            entropy=self._entropy,
            now_ms=lambda: time.time_ns() // 1_000_000,
            clock_ns=time.perf_counter_ns,
        )
        for worker in registry:
            worker.load = random.Random(0).randrange(8)

    def measure(self, traps: int) -> Times:
        """Place requests until so many have trapped."""
        times = Times([], [], [])
        into = times.good
        for number in range(traps * self._every):
            self._number = number
            request = RequestView("chatcmpl-0123456789abcdef01234567", PATH)
            started = time.perf_counter_ns()
            decision = self._dispatcher.begin(request)
            taken_us = (time.perf_counter_ns() - started) / 1000
            assert isinstance(decision, Decision), "it has its whole limit at once"
            self._check(decision)
            if self._traps():
                times.trapping.append(taken_us)
                into = times.following
            else:
                into.append(taken_us)
                into = times.good
            ended = Outcome(decision.worker.url, True, 200, 20.0, 100.0, 1, None)
            self._dispatcher.complete(decision, ended)
        return times

    def _traps(self) -> bool:
        return self._number % self._every == self._every // 2

    def _entropy(self) -> int:
        return TRAPPING_ENTROPY if self._traps() else GOOD_ENTROPY

    def _check(self, decision: Decision) -> None:
        kind = None if decision.failure is None else decision.failure.kind
        if kind == "timeout":  # this process was kept off the CPU
            self.timeouts += 1
            return
        expected = "trap" if self._traps() else None
        assert kind == expected, f"decision {self._number}: {decision.failure}"


async def measure(wasm: bytes, options: argparse.Namespace) -> Times:
    """Load the plugin and measure it, some of it twice to warm up."""
    factory = PolicyFactory(runtime=RuntimeOptions(in_child=False))
    try:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "plugin.wasm"
            path.write_bytes(wasm)
            await factory.load_wasm_plugin(
                WasmPolicyConfig(
                    str(path),
                    "plugin",
                    max_execution_time_ms=LIMIT_MS,
                    inline_budget_ms=LIMIT_MS,
                )
            )
        placing = Placing(factory, options.workers, options.every)
        placing.measure(max(1, options.traps // 10))
        times = placing.measure(options.traps)
        if placing.timeouts:
            print(f"{placing.timeouts} decisions took longer than {LIMIT_MS} ms: a busy machine.")
        return times
    finally:
        factory.close()


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is measured"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traps", type=int, default=1000, help="of each plugin")
    parser.add_argument("--every", type=int, default=10, help="so manieth decision traps")
    parser.add_argument("--workers", type=int, default=8)
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    if options.every < LEAST_EVERY or options.traps < 1 or options.workers < 1:
        raise SystemExit(
            f"{options.traps} traps, one in {options.every} decisions, {options.workers} workers: "
            f"at least 1, {LEAST_EVERY} and 1 are needed (options --traps, --every and --workers)"
        )
    logging.basicConfig(level=logging.ERROR)  # that it traps is what it is about
    kinds: dict[str, Callable[[int, int], bytes]] = {
        "JSON plugin": trapping_json,
        "table plugin": trapping_table,
    }
    rows, missed = [], False
    for name, made in kinds.items():
        times = asyncio.run(measure(made(DATA_BYTES, PAGES), options))
        columns = [times.good, times.trapping, times.following, times.price]
        rows.append([name, *(_cell(column) for column in columns)])
        missed |= quantile(sorted(times.price), 0.5) >= BAR_US
    print(f"{options.traps:,} traps each, {options.workers} workers; median and p99 in µs\n")
    head = ["plugin", "good decision", "trapping, with fallback", "the next", "price of a trap"]
    print(table(head, rows) + "\n")
    print(f"price below {BAR_US:,.0f} µs in the median: {'missed' if missed else 'kept'}")
    return 1 if missed else 0


def _cell(times: list[float]) -> str:
    at = partial(quantile, sorted(times))
    return f"{at(0.5):,.1f}, {at(0.99):,.1f}"


if __name__ == "__main__":
    sys.exit(main(arguments()))
