"""A thousand swaps of a plugin in a minute, under load: is a request lost, or decided by two?

Hard about it: a decision that was taken half by one version and half by another looks like any
other. So the two modules that take turns choose differently, each always one worker of its own, and
whatever placed a request has to agree: the version that the decision names, the answer to the
upload that made this version, and the worker. The router is in this process, where each decision
can be looked at; the engine, the load and whoever uploads are in processes of their own. Each
swap goes all the way: sent over HTTP, checked, instantiated, tried out, written to the store. Only
the first of each module is compiled, and the others come from the cache of compiled ones.

    python benchmarks/swaps.py [--swaps 1000] [--rate 2000] [--seconds 60]

Ends with status 1 where a request failed, a decision cannot be attributed, the swaps took longer
than they should, or the resident memory is more than 10 MB above what it was after a warm-up of 50
swaps and 10 s of load.
"""

import argparse
import asyncio
import gc
import http.client
import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path

import uvloop
from clients import Failed, UnaryRun, unary
from lab import Disturbance, Lab, free_ports, machine, start_engine
from plugins import constant_json, router_here
from workload import summary, worker_urls

from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.server import RouterServer

NAME = "swapped"
WARM_UP_SWAPS, WARM_UP_SECS = 50, 10.0
MAX_GROWTH_MB = 10.0
LATE_SHARE = 0.02
"""By how much longer than they should the swaps may take in all."""

CONNECTIONS = 64
REQUEST_SECS = 30.0
SAMPLE_SECS = 0.5


@dataclass(frozen=True)
class Swap:
    """One upload, as it was answered: the version, its module's digest, the seconds it took."""

    version: str
    digest: str
    seconds: float


@dataclass
class Swaps:
    """A number of uploads one after the other, and the seconds that they took in all."""

    each: list[Swap]
    seconds: float


# ---- whoever uploads, in a process of its own


def swap(port: int, modules: Sequence[bytes], count: int, seconds: float) -> Swaps:
    """Upload the modules in turns, evenly over this time. Raises Failed."""
    each = []
    started = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECS)
    with closing(connection):
        for number in range(count):
            time.sleep(max(0.0, started + number * seconds / count - time.monotonic()))
            each.append(upload(connection, modules[number % len(modules)]))
    return Swaps(each, time.monotonic() - started)


def upload(connection: http.client.HTTPConnection, module: bytes) -> Swap:
    """Raises Failed where that version does not decide afterwards."""
    began = time.monotonic()
    headers = {"Content-Type": "application/wasm"}
    connection.request("PUT", f"/plugins/{NAME}", module, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    if response.status not in (200, 201) or answer["status"] == "unchanged":
        raise Failed(f"an upload was answered {response.status}: {answer}")
    version = answer["plugin"]["current"]
    return Swap(version["id"], version["sha256"], time.monotonic() - began)


# ---- in this process


@dataclass
class Record:
    """Every decision of the router.

    Attributes:
        placed: how often a version, by its id, has placed a request on a worker, by its URL.
        failed: how often a decision failed, by what is said of it.
        unsuccessful: requests that did not end well.
    """

    placed: Counter[tuple[str | None, str]] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    unsuccessful: int = 0

    def note(self, decision: Decision, outcome: Outcome) -> None:
        """A placement has ended."""
        self.placed[decision.version, decision.worker.url] += 1
        if decision.failure is not None or decision.policy.name != NAME:
            self.failed[f"{decision.policy.name}: {decision.failure}"] += 1
        self.unsuccessful += not outcome.success


@dataclass(frozen=True)
class Phase:
    """Load and swaps at the same time; resident memory in MB while they ran."""

    load: UnaryRun
    swaps: Swaps
    peak_mb: float


def resident_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise Failed("/proc/self/status has no VmRSS")


async def phase(
    server: RouterServer,
    pool: Executor,
    modules: Sequence[bytes],
    options: argparse.Namespace,
    *,
    swaps: int,
    seconds: float,
) -> Phase:
    """Raises Failed where a request or an upload was not answered as it should be."""
    paced = ["--rate", str(options.rate), "--seconds", str(seconds)]
    arguments = [*paced, "--connections", str(CONNECTIONS), "--check-length"]
    loading = asyncio.create_task(asyncio.to_thread(unary, server.port, None, *arguments))
    swapping = asyncio.get_running_loop().run_in_executor(
        pool, partial(swap, server.port, modules, swaps, seconds)
    )
    both = asyncio.gather(loading, swapping)
    peak = resident_mb()
    while not both.done():
        await asyncio.wait({both}, timeout=SAMPLE_SECS)
        peak = max(peak, resident_mb())
    load, swapped = await both
    return Phase(load, swapped, peak)


async def measure(lab: Lab, ports: Sequence[int], options: argparse.Namespace) -> bool:
    """Measure, print, and return whether all is well."""
    record = Record()
    urls = worker_urls(ports, 2)
    modules = [constant_json(index) for index in range(len(urls))]
    workers = {sha256(m).hexdigest(): url for m, url in zip(modules, urls, strict=True)}
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        async with router_here(lab.folder, urls, record.note) as server:
            loop = asyncio.get_running_loop()
            first = await loop.run_in_executor(pool, swap, server.port, modules, 2, 0.0)
            await server.use_policy(NAME)
            under = partial(phase, server, pool, modules, options)
            warm = await under(swaps=WARM_UP_SWAPS, seconds=WARM_UP_SECS)
            gc.collect()
            start_mb = resident_mb()
            main_phase = await under(swaps=options.swaps, seconds=options.seconds)
            gc.collect()
            end_mb = resident_mb()
    uploads = [*first.each, *warm.swaps.each, *main_phase.swaps.each]
    told = attributed(record, uploads, workers)
    sent = sum(each.load.requests + CONNECTIONS for each in (warm, main_phase))
    if (placed := sum(record.placed.values())) != sent:
        told.append(f"{sent:,} requests were sent, {placed:,} placed")
    swaps = main_phase.swaps
    if swaps.seconds > options.seconds * (1 + LATE_SHARE):
        told.append(f"{len(swaps.each):,} swaps took {swaps.seconds:.1f} s")
    if end_mb - start_mb > MAX_GROWTH_MB:
        told.append(f"resident memory grew by {end_mb - start_mb:.1f} MB")
    show(main_phase, record, (start_mb, main_phase.peak_mb, end_mb))
    print("\n".join(told) if told else "every request served, every decision attributed: kept")
    return not told


def attributed(record: Record, uploads: Sequence[Swap], workers: dict[str, str]) -> list[str]:
    """What is wrong with the decisions: a sentence each.

    Args:
        record: of all decisions.
        uploads: every one that was answered.
        workers: by the digest of a module, the URL of the one that it chooses.
    """
    told = [f"{number:,} decisions failed: {said}" for said, number in record.failed.items()]
    if record.unsuccessful:
        told.append(f"{record.unsuccessful:,} requests did not end well")
    digests: dict[str | None, set[str]] = {}
    for each in uploads:
        digests.setdefault(each.version, set()).add(each.digest)
    told += [f"version {id} has {len(of)} digests" for id, of in digests.items() if len(of) > 1]
    for (version, url), number in record.placed.items():
        known = digests.get(version)
        if known is None:
            told.append(f"{number:,} decisions of version {version}, which nobody has uploaded")
        elif {workers[digest] for digest in known} != {url}:
            told.append(f"{number:,} decisions of version {version} for {url}, not its worker")
    return told


def show(measured: Phase, record: Record, memory_mb: tuple[float, float, float]) -> None:
    load, swaps = measured.load, measured.swaps
    took = summary(each.seconds * 1000 for each in swaps.each)
    print(
        f"{len(swaps.each):,} swaps in {swaps.seconds:.1f} s: p50 {took['p50']:.1f} ms, "
        f"p99 {took['p99']:.1f} ms, at most {took['max']:.1f} ms"
    )
    print(
        f"{load.requests:,} requests in {load.seconds:.1f} s: p50 {load.p50_us / 1000:.2f} ms, "
        f"p99 {load.p99_us / 1000:.1f} ms"
    )
    deciding = len({version for version, _ in record.placed})
    print(
        f"{sum(record.placed.values()):,} decisions, warm-up included, by {deciding:,} versions\n"
        "resident MB at the start, the most, at the end: "
        + ", ".join(f"{mb:.1f}" for mb in memory_mb)
    )


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is asked"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=2000.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all of it")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    print("; ".join(f"{name} {value}" for name, value in machine().items()) + "\n")
    logging.basicConfig(level=logging.ERROR)  # each swap would be told of
    disturbance = Disturbance()
    with Lab() as lab:
        ports = free_ports(2)
        start_engine(lab, ports, 1, 1)
        try:
            kept = uvloop.run(measure(lab, ports, options))
        except (Failed, OSError) as error:
            raise SystemExit(f"the measurement failed: {error}") from error
    print(disturbance.sentence())
    return 0 if kept else 1


if __name__ == "__main__":
    sys.exit(main(arguments()))
