"""What one decision of a plugin takes, through `WasmPolicy.select_worker`.

Hard about it: a decision is calls within a sandbox, what is asked copied in and what is chosen
copied out, for JSON encoded and decoded on each side, and all of that has to cost less than what a
request costs a proxy. The times are of single decisions, each with its own entropy, and between two
of them the loads of two workers change, as they do between two requests: nothing is amortised. The
shipped plugins declare that they do not read the request's body; `given_the_text` is
`least_connections` without its manifest, which is therefore given all that a plugin can be given by
default. Beside them: the same with an instance for each decision (`isolation: per_call`), the same
through wasmtime's public Python classes, and the built-in `power_of_two`, which has no sandbox.
`python component` is a component written in Python that chooses as `least_connections` does, on the
event loop; `…, its lane` is the same where components decide by default, on a thread of its own:
there the time is from the request to the answer's callback on the event loop.

    python benchmarks/decision.py [--decisions 20000]

Ends with status 1 where a median is above its bar: 10 µs for JSON and 8 workers, 3 µs for the
table and 1,000, 300 µs for the component and 8; it is left out where componentize-py is not
installed.
"""

import argparse
import asyncio
import platform
import random
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tables import table
from workload import quantile

import sgl_router
from sgl_router.core.policy import Choice, PendingChoice, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError
from sgl_router.policies import PolicyFactory, WasmPolicyConfig, shipped_plugins
from sgl_router.wasm.artifacts import default_cache_folder
from sgl_router.wasm.calls import Calls, PublicCalls
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.runtime import RuntimeOptions

WORKERS = (1, 8, 32, 64, 128, 1000)
JSON, TABLE, BUILTIN = "least_connections", "power_of_two_table", "power_of_two"
GIVEN_TEXT = "given_the_text"
BARS_US = {(JSON, 8): 10.0, (TABLE, 1000): 3.0, ("python component", 8): 300.0}
COMPONENT = "python component"
COMPONENT_MEMORY_BYTES = 32 * 1024 * 1024
LANE_TIMEOUT_SECS = 60.0
MAX_SECS = 3.0
"""For one row: what takes long is done less often."""

MIN_DECISIONS = 200
FAILED_SHARE = 0.01
"""Of the decisions: this process may be kept off the CPU for a plugin's limit."""

BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%b"}]}' % (b"word " * 200)


@dataclass(frozen=True)
class Row:
    """What is measured: a name for it, the plugin's file or None for a built-in policy, and how the
    plugin is called; in a lane, each decision is waited for."""

    name: str
    path: Path | None
    isolation: str = "shared"
    calls: type[Calls] = Calls
    lane: str = "auto"


@dataclass(frozen=True)
class Measured:
    """Times of single decisions in µs."""

    decisions: int
    median_us: float
    p99_us: float


def rows(folder: Path) -> list[Row]:
    """Everything that is measured; `folder` is for modules that are made."""
    shipped = shipped_plugins()
    stripped = folder / f"{GIVEN_TEXT}.wasm"
    stripped.write_bytes(without_manifest(shipped[JSON].read_bytes()))
    made = python_component(folder)
    if made is None:
        components = []
        print(f"{COMPONENT} is left out: componentize-py is not installed (the extra `kit` has it)")
    else:
        components = [
            Row(COMPONENT, made, lane="inline"),
            Row(f"{COMPONENT}, its lane", made, lane="offload"),
        ]
    return [
        *components,
        Row(JSON, shipped[JSON]),
        Row(GIVEN_TEXT, stripped),
        Row("weighted_random", shipped["weighted_random"]),
        Row(TABLE, shipped[TABLE]),
        Row(f"{JSON}, per_call", shipped[JSON], "per_call"),
        Row(f"{TABLE}, per_call", shipped[TABLE], "per_call"),
        Row(f"{JSON}, public calls", shipped[JSON], calls=PublicCalls),
        Row(f"{TABLE}, public calls", shipped[TABLE], calls=PublicCalls),
        Row(BUILTIN, None),
    ]


APP = """
from wit_world.exports.policy import Decision

class Policy:
    def init(self, config):
        pass

    def select_worker(self, input):
        best = None
        load = 0
        for index, worker in enumerate(input.workers):
            if worker.healthy and (best is None or worker.load < load):
                best, load = index, worker.load
        return Decision(best, None)

    def on_request_complete(self, outcome):
        pass
"""


def python_component(folder: Path) -> Path | None:
    """A component that chooses the least load; None where there is nothing to build it with."""
    beside = Path(sys.executable).with_name("componentize-py")
    command = str(beside) if beside.exists() else shutil.which("componentize-py")
    if command is None:
        return None
    wit = Path(sgl_router.__file__).parent / "wasm" / "wit"
    made = folder / "component.wasm"
    (folder / "app.py").write_text(APP, "utf-8")
    build = [command, "-d", str(wit), "-w", "policy-plugin", "componentize", "--stub-wasi"]
    subprocess.run([*build, "-p", str(folder), "app", "-o", str(made)], check=True)
    manifest = b'{"needs": [], "reads_body": false}'
    section = bytes([len(SECTION)]) + SECTION.encode("ascii") + manifest
    made.write_bytes(made.read_bytes() + bytes([0, len(section)]) + section)
    return made


def without_manifest(module: bytes) -> bytes:
    """The module with its manifest's section under another name, which nobody reads."""
    manifest = SECTION.encode("ascii")
    assert module.count(manifest) == 1, "one section has it as its name"
    return module.replace(manifest, b"x" * len(manifest))


def pool(workers: int, draw: random.Random) -> WorkerView:
    registry = WorkerRegistry()
    for i in range(workers):
        registry.add(Worker(f"http://10.0.{i // 250}.{i % 250}:30000", Health.UP))
    for worker in registry:
        worker.load = draw.randrange(32)
    return registry.view()


async def measure(policy: Policy, workers: int, decisions: int, *, lane: bool) -> Measured:
    """Decide so often, or for `MAX_SECS`; in the lane, wait for each."""
    loop = asyncio.get_running_loop()
    draw = random.Random(0)
    view = pool(workers, draw)
    times: list[int] = []
    failed = 0
    until = time.monotonic() + MAX_SECS
    while len(times) < decisions:
        if len(times) >= MIN_DECISIONS and time.monotonic() > until:
            break
        for change in (1, -1):  # as a placement and the end of one
            changed = view[draw.randrange(workers)]
            changed.load = max(0, changed.load + change)
            if changed.watched_by:
                changed.touched()
        request = RequestView("chatcmpl-0123456789abcdef01234567", "/v1/chat/completions", BODY)
        request.entropy = draw.getrandbits(53)
        request.now_ms = 1_795_366_034_123
        started = time.perf_counter_ns()
        error: DecisionError | None = None
        if lane:
            choice = policy.choose(view, request)
            assert isinstance(choice, PendingChoice), "it decides on a thread of its own"
            answer: asyncio.Future[Choice] = loop.create_future()
            choice.then = answer.set_result
            done = await asyncio.wait_for(answer, LANE_TIMEOUT_SECS)
            error = done if isinstance(done, DecisionError) else None
        else:
            try:
                policy.select_worker(view, request)
            except DecisionError as failure:
                error = failure
        times.append(time.perf_counter_ns() - started)
        if error is not None:
            failed += 1
            if failed > FAILED_SHARE * max(decisions, MIN_DECISIONS):
                raise SystemExit(f"the measurement failed: {workers} workers: {error}") from error
    times.sort()
    return Measured(len(times), quantile(times, 0.5) / 1000, quantile(times, 0.99) / 1000)


async def measure_row(row: Row, decisions: int) -> list[Measured]:
    """One row, for each number of workers."""
    runtime = RuntimeOptions(cache_folder=default_cache_folder(), calls=row.calls)
    factory = PolicyFactory(runtime=runtime)
    try:
        if row.path is not None:
            settings: dict[str, Any] = {"isolation": row.isolation, "lane": row.lane}
            if row.name.startswith(COMPONENT):
                settings["max_memory_bytes"] = COMPONENT_MEMORY_BYTES
            await factory.load_wasm_plugin(WasmPolicyConfig(str(row.path), "plugin", **settings))
        policy = factory.create_by_name(BUILTIN if row.path is None else "plugin")
        assert policy is not None, "built in, or loaded above"
        found = []
        for workers in WORKERS:
            in_lane = row.lane == "offload"
            await measure(policy, workers, decisions // 10, lane=in_lane)
            found.append(await measure(policy, workers, decisions, lane=in_lane))
        return found
    finally:
        factory.close()


async def main(decisions: int) -> int:
    """Measure, print, and return the process's exit status."""
    print(
        f"Python {platform.python_version()}, wasmtime {version('wasmtime')}, {decisions:,} "
        f"decisions each or as many as {MAX_SECS:g} s allow; median and p99 in µs\n"
    )
    found: dict[tuple[str, int], Measured] = {}
    with TemporaryDirectory() as folder:
        for row in rows(Path(folder)):
            for workers, measured in zip(WORKERS, await measure_row(row, decisions), strict=True):
                found[row.name, workers] = measured
    names = list(dict.fromkeys(name for name, _ in found))
    cells = [[name, *(_cell(found[name, workers]) for workers in WORKERS)] for name in names]
    print(table(["policy", *(f"{workers:,} workers" for workers in WORKERS)], cells) + "\n")
    missed = 0
    for (name, workers), bar in BARS_US.items():
        if (name, workers) not in found:
            continue
        median = found[name, workers].median_us
        missed += median > bar
        print(
            f"{name}, {workers:,} workers: median {median:.1f} µs, at most {bar:g} are wanted: "
            + ("missed" if median > bar else "kept")
        )
    return 1 if missed else 0


def _cell(measured: Measured) -> str:
    return f"{measured.median_us:.1f}, {measured.p99_us:.1f}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=20_000)
    sys.exit(asyncio.run(main(parser.parse_args().decisions)))
