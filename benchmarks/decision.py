"""What one decision of a plugin takes, through `WasmPolicy.select_worker`.

Hard about it: a decision is four calls within a sandbox, an encoding and a decoding of JSON on each
side, a copy in and a copy out, and all of that has to cost less than what a request costs a proxy.
The built-in `power_of_two` beside it shows what the sandbox adds; the times are of single
decisions, each with its own entropy, so that nothing is amortised. The shipped plugins declare that
they do not read the request's body; `given_the_text` is `least_connections` without its manifest,
which is therefore given all that a plugin can be given by default.

    python benchmarks/decision.py [--decisions 20000]
"""

import argparse
import asyncio
import platform
import random
import statistics
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import NamedTemporaryFile

from sgl_router.core.policy import Policy
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError
from sgl_router.policies import PolicyFactory, WasmPolicyConfig, shipped_plugins

WORKERS = (1, 8, 64)
GIVEN_TEXT = "given_the_text"
POLICIES = ("least_connections", GIVEN_TEXT, "weighted_random", "power_of_two")
MANIFEST = b"sgl-router.manifest"
BODY = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"%b"}]}' % (b"word " * 200)


def measure(policy: Policy, workers: int, decisions: int) -> list[float]:
    """The time of each decision in µs, sorted."""
    registry = WorkerRegistry()
    for i in range(workers):
        registry.add(Worker(f"http://10.0.0.{i}:30000", Health.UP))
    view = registry.view()
    draw = random.Random(0)
    for worker in view:
        worker.load = draw.randrange(32)
    times = []
    for _ in range(decisions):
        request = RequestView("chatcmpl-0123456789abcdef01234567", "/v1/chat/completions", BODY)
        request.entropy = draw.getrandbits(53)
        request.now_ms = 1_795_366_034_123
        started = time.perf_counter_ns()
        with suppress(DecisionError):  # this process may be kept off the CPU for a plugin's limit
            policy.select_worker(view, request)
        times.append((time.perf_counter_ns() - started) / 1000)
    return sorted(times)


def without_manifest(module: bytes) -> bytes:
    """The module with its manifest's section under another name, which nobody reads."""
    assert module.count(MANIFEST) == 1, "one section has it as its name"
    return module.replace(MANIFEST, b"x" * len(MANIFEST))


async def main(decisions: int) -> None:
    factory = PolicyFactory()
    plugins = shipped_plugins()
    with NamedTemporaryFile(suffix=".wasm") as stripped:
        stripped.write(without_manifest(plugins["least_connections"].read_bytes()))
        stripped.flush()
        for name, path in {**plugins, GIVEN_TEXT: Path(stripped.name)}.items():
            await factory.load_wasm_plugin(WasmPolicyConfig(module_path=str(path), name=name))
    print(
        f"Python {platform.python_version()}, wasmtime {version('wasmtime')}, "
        f"{decisions:,} decisions each; µs"
    )
    print(f"{'policy':<20}{'workers':>8}{'median':>9}{'p99':>9}")
    for name in POLICIES:
        policy = factory.create_by_name(name)
        assert policy is not None, "built in, or loaded above"
        for workers in WORKERS:
            measure(policy, workers, decisions // 10)
            times = measure(policy, workers, decisions)
            p99 = times[len(times) * 99 // 100]
            print(f"{name:<20}{workers:>8}{statistics.median(times):>9.1f}{p99:>9.1f}")
    factory.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--decisions", type=int, default=20_000)
    asyncio.run(main(parser.parse_args().decisions))
