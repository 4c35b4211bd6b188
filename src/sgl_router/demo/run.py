"""The demo: three engines of different speed, the router, requests, a table."""

import asyncio
import signal
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from sgl_router.config import RouterConfig
from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.demo.client import StreamClient
from sgl_router.demo.engine import DemoEngine, EngineSpeed
from sgl_router.server import RouterServer, run_loop

FIRST_POLICY, SECOND_POLICY = "least_connections", "weighted_random"
ENGINES = {
    "fast": EngineSpeed(first_token_ms=10, token_ms=2),
    "medium": EngineSpeed(first_token_ms=20, token_ms=4),
    "slow": EngineSpeed(first_token_ms=40, token_ms=8),
}
WEIGHTS = (4, 2, 1)
SERVE_PORT = 30000
READY_TRIES = 200


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line said; port 0 is any free port, None 30000 with `serve` and else 0."""

    requests: int = 200
    concurrency: int = 32
    port: int | None = None
    serve: bool = False


@dataclass(slots=True)
class Placement:
    """What one policy did with one worker."""

    requests: int = 0
    errors: int = 0
    ttft_ms: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Tally:
    """Every placement, and the time of every decision."""

    placements: defaultdict[tuple[str, str], Placement] = field(
        default_factory=lambda: defaultdict(Placement)
    )
    decision_us: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed_decisions: int = 0

    def count(self, decision: Decision, outcome: Outcome) -> None:
        placement = self.placements[decision.policy.name, decision.worker.url]
        placement.requests += 1
        placement.errors += not outcome.success
        if outcome.ttft_ms is not None:
            placement.ttft_ms.append(outcome.ttft_ms)
        self.decision_us[decision.policy.name].append(decision.elapsed_ns / 1000)
        self.failed_decisions += decision.failure is not None


def run_demo(options: DemoOptions) -> int:
    """Run the demo; returns the process's exit status: 0 where no request failed."""
    return run_loop(_demo(options, Console()))


async def _demo(options: DemoOptions, console: Console) -> int:
    engines = [DemoEngine(name, speed) for name, speed in ENGINES.items()]
    tally = Tally()
    server: RouterServer | None = None
    try:
        for engine in engines:
            await engine.start()
        server = RouterServer(_config(options, engines), on_complete=tally.count)
        await server.start()
        await _until_ready(server)
        if options.serve:
            await _serve(server, console)
            return 0
        errors = await _send_all(options, server, console)
    finally:
        if server is not None:
            await server.stop(5.0)
        for engine in engines:
            engine.stop()
    _print(console, engines, tally)
    for error in errors[:3]:
        console.print(f"[red]failed:[/red] {error}", highlight=False)
    return 1 if errors else 0


def _config(options: DemoOptions, engines: list[DemoEngine]) -> RouterConfig:
    weights = {engine.url: weight for engine, weight in zip(engines, WEIGHTS, strict=True)}
    port = options.port
    if port is None:
        port = SERVE_PORT if options.serve else 0
    return RouterConfig(
        plugin_store="none",
        host="127.0.0.1",
        port=port,
        worker_urls=tuple(engine.url for engine in engines),
        policy=FIRST_POLICY,
        plugin_config={SECOND_POLICY: {"config": {"weights": weights}}},
        health_check_interval_secs=1,
    )


async def _until_ready(server: RouterServer) -> None:
    for _ in range(READY_TRIES):
        if all(worker.healthy for worker in server.registry):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the demo's own engines are healthy as soon as they are asked")


async def _serve(server: RouterServer, console: Console) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    url = f"http://127.0.0.1:{server.port}"
    body = '{"model": "demo", "stream": true, "messages": [{"role": "user", "content": "Hello"}]}'
    console.print(f"Three engines and the router at {url}, policy {FIRST_POLICY}. Try:\n")
    print(f"curl -N {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'")
    print(f"curl {url}/workers", flush=True)
    console.print("\nCtrl-C ends it.")
    await stop.wait()


async def _send_all(options: DemoOptions, server: RouterServer, console: Console) -> list[str]:
    """Send the requests and swap the policy half-way; returns what failed."""
    errors: list[str] = []
    numbers = iter(range(options.requests))
    answered = 0
    with _progress(options.requests, console) as advance:

        async def client_loop() -> None:
            nonlocal answered
            client = StreamClient("127.0.0.1", server.port)
            for number in numbers:
                result = await client.stream(_body(number))
                if result.error is not None:
                    errors.append(result.error)
                answered += 1
                if answered == options.requests // 2:
                    await server.use_policy(SECOND_POLICY)  # the others go on meanwhile
                advance()
            client.close()

        # A quarter at most, so that either policy places a good part of them.
        clients = min(options.concurrency, max(1, options.requests // 4))
        await asyncio.gather(*(client_loop() for _ in range(clients)))
    return errors


def _body(number: int) -> bytes:
    return orjson.dumps(
        {
            "model": "demo",
            "stream": True,
            "max_tokens": 8 + number % 17,
            "messages": [{"role": "user", "content": f"Tell me about request {number}."}],
        }
    )


@contextmanager
def _progress(total: int, console: Console) -> Iterator[Callable[[], None]]:
    columns = (
        TextColumn("streaming requests"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=total)
        yield lambda: progress.advance(task)


def _print(console: Console, engines: list[DemoEngine], tally: Tally) -> None:
    table = Table(title="Who answered, and the time to the first token")
    for column in ("policy", "engine", "requests", "errors", "share", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column in ("policy", "engine") else "right")
    for policy in tally.decision_us:
        placed = sum(p.requests for (name, _), p in tally.placements.items() if name == policy)
        for engine in engines:
            row = tally.placements[policy, engine.url]
            table.add_row(
                policy,
                engine.name,
                str(row.requests),
                str(row.errors),
                f"{row.requests / placed:.0%}",
                _percentile(row.ttft_ms, 50),
                _percentile(row.ttft_ms, 99),
            )
        table.add_section()
    console.print(table)
    decisions = Table(title="What a decision took, in µs")
    for column in ("policy", "decisions", "p50 µs", "p99 µs"):
        decisions.add_column(column, justify="left" if column == "policy" else "right")
    for policy, times in tally.decision_us.items():
        decisions.add_row(policy, str(len(times)), _percentile(times, 50), _percentile(times, 99))
    console.print(decisions)
    if tally.failed_decisions:
        console.print(f"{tally.failed_decisions} decisions were taken by the fallback policy")


def _percentile(values: list[float], percent: int) -> str:
    if not values:
        return "–"
    cuts = statistics.quantiles(values * 2, n=100, method="inclusive")  # two values at least
    return f"{cuts[percent - 1]:.1f}"
