"""How this router bears many workers, many streams at once, and large bodies.

Hard about it: thousands of streams take thousands of descriptors in three processes, and it is
easily the client or the engine that is measured. Both are therefore as little as will do, in
processes of their own whose share of a CPU is printed beside the figures; the pace of a stream is
lowered as their number grows, so that the chunks per second stay what one core can send, pass on
and receive; and everything is measured straight to the engine as well. Each chunk carries the time
at which it was sent, so that an engine that is late is not taken for a router that is.

- decisions: what it takes to place one request, by policy and number of workers, without sockets
  (`placements.py`).
- workers: what a request costs the router's process as its pool grows. The workers are path
  prefixes of one engine: to the router each is an engine with connections of its own.
- streams: held open for --hold seconds. The largest gap is the most by which two chunks of one
  stream came further apart than they were sent.
- bodies: the time to an answer that is given when the last byte has arrived, and what eight
  clients together upload; once passed on as they come, once held for a policy that reads them.

    python benchmarks/scale.py [--hold 60] [--json FILE] [--parts streams]
    python benchmarks/scale.py --quick

5,000 streams need some 10,300 descriptors: ulimit -Hn must allow as many (systemd: LimitNOFILE=).
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from clients import Failed, StreamLoad, StreamRun, streams, unary
from lab import (
    Disturbance,
    Lab,
    Program,
    Unavailable,
    free_ports,
    machine,
    raise_descriptor_limit,
    start_engine,
    start_router,
)
from placements import measure_decisions
from tables import MISSING, table
from workload import worker_urls

WORKERS = (8, 100, 1000)
STREAMS = (1, 64, 1000, 5000)
BODIES = {"1 kB": (1_000, 2000), "100 kB": (100_000, 400), "8 MB": (8_000_000, 24)}
"""Sizes in bytes, and how many requests of each."""

ENGINE_PORTS = 4
ROUNDS = 5
"""Of what is measured with one number of workers after the other; medians are shown."""
DIRECT = "straight to the engine"
BODY_BYTES = 1100
STREAM_WORKERS = 8
SPARE_DESCRIPTORS = 300
"""What a process needs besides those of its streams."""


@dataclass(frozen=True)
class Settings:
    """Of one run.

    Attributes:
        chunk_rate: chunks a second of all streams together, which sets the pace of one.
        shortening: by what everything that is only repeated is done less often.
    """

    policy: str
    body_policies: list[str]
    decisions: int
    rate: float
    seconds: float
    hold: float
    direct_hold: float
    chunk_rate: float
    streams: list[int]
    shortening: int


# ---- workers


def measure_workers(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    load = ["--body-bytes", str(BODY_BYTES)]
    seconds = str(settings.seconds / ROUNDS)
    paced = [*load, "--rate", str(settings.rate), "--seconds", seconds]
    with Lab() as lab:
        ports = free_ports(ENGINE_PORTS)
        engine = start_engine(lab, ports, 1, 1)
        routers = {n: start_router(lab, settings.policy, worker_urls(ports, n)) for n in WORKERS}
        idle = {count: router.resident_bytes() for count, router in routers.items()}
        for count, router in routers.items():
            # Twice each worker, so that there is a connection to every one of them.
            unary(router.port, None, *load, "--requests", str(2 * count + 1000))
        runs: dict[int, list[dict[str, float]]] = {count: [] for count in WORKERS}
        for _ in range(ROUNDS):
            direct = unary(engine.port, None, *paced)
            for count, router in routers.items():
                run = unary(router.port, router, *paced)
                assert run.cpu_us is not None, "it was watched"
                runs[count].append(
                    {
                        "cpu_us": run.cpu_us,
                        "added_p50_us": run.p50_us - direct.p50_us,
                        "added_p99_us": run.p99_us - direct.p99_us,
                    }
                )
        for count, router in routers.items():
            found[str(count)] = {
                **{m: median(run[m] for run in runs[count]) for m in runs[count][0]},
                "idle_bytes": idle[count],
                "resident_bytes": router.resident_bytes(),
            }
    head = [
        f"{settings.policy}, {settings.rate:,.0f} requests/s",
        *("CPU µs a request", "added p50 µs", "added p99 µs", "MB idle", "MB after load"),
    ]
    rows = [
        [
            f"{int(count):,} workers",
            f"{row['cpu_us']:.1f}",
            f"{row['added_p50_us']:.0f}",
            f"{row['added_p99_us']:.0f}",
            f"{row['idle_bytes'] / 1e6:.0f}",
            f"{row['resident_bytes'] / 1e6:.0f}",
        ]
        for count, row in found.items()
    ]
    print(table(head, rows) + "\n")
    return found


# ---- streams


@dataclass(frozen=True)
class HeldStreams:
    """One number of streams, with and without the router between."""

    interval_ms: int
    through: StreamRun
    direct: StreamRun
    idle_bytes: int
    engine_cpu_share: float


def hold_streams(settings: Settings, count: int) -> HeldStreams:
    interval_ms = max(10, round(count * 1000 / settings.chunk_rate))
    ramp = max(0.5, count / 1000)

    def load(hold: float) -> StreamLoad:
        # The first stream lasts until the last one has been held that long.
        chunks = round((hold + ramp) * 1000 / interval_ms) + 1
        return StreamLoad(count, chunks, interval_ms, ramp)

    def engine_for(lab: Lab, ports: list[int], wanted: StreamLoad) -> Program:
        return start_engine(lab, ports, wanted.chunks, wanted.interval_ms)

    with Lab() as lab:
        wanted = load(min(settings.hold, settings.direct_hold))
        ports = free_ports(ENGINE_PORTS)
        engine = engine_for(lab, ports, wanted)
        direct = streams(engine.port, None, wanted)
        engine.stop()
        wanted = load(settings.hold)
        ports = free_ports(ENGINE_PORTS)
        engine = engine_for(lab, ports, wanted)
        router = start_router(lab, settings.policy, worker_urls(ports, STREAM_WORKERS))
        idle, spent, started = router.resident_bytes(), engine.cpu_us(), time.monotonic()
        through = streams(router.port, router, wanted)
        engine_share = (engine.cpu_us() - spent) / 1e6 / (time.monotonic() - started)
    return HeldStreams(interval_ms, through, direct, idle, engine_share)


def measure_streams(settings: Settings, descriptors: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    seen, cost = [], []
    for count in settings.streams:
        needed = 2 * count + SPARE_DESCRIPTORS
        if needed > descriptors:
            print(
                f"{count:,} streams left out: they need {needed:,} descriptors in a process, the "
                f"hard limit is {descriptors:,} (ulimit -Hn; systemd: LimitNOFILE=).\n"
            )
            continue
        held = hold_streams(settings, count)
        found[str(count)] = asdict(held)
        seen.append(what_streams_see(count, held))
        cost.append(what_streams_cost(count, held))
        if held.through.errors or held.direct.errors:
            print(f"{count:,} streams: {held.through.errors}; direct: {held.direct.errors}\n")
    title = f"{settings.policy}, {settings.hold:g} s"
    head = [title, "chunks/s each", "errors", "first chunk p50 / p99 ms", "direct"]
    head += ["chunk p50 / p99 ms", "direct", "largest gap ms", "direct"]
    print(table(head, seen) + "\n")
    head = [title, "CPU µs a chunk", "CPU %", "kB a stream", "engine's CPU %", "client's CPU %"]
    print(table(head, cost) + "\n")
    return found


def what_streams_see(count: int, held: HeldStreams) -> list[str]:
    def pair(values: dict[str, float]) -> str:
        return f"{values['p50'] / 1000:.2f} / {values['p99'] / 1000:.1f}"

    through, direct = held.through, held.direct
    return [
        f"{count:,} streams",
        f"{1000 / held.interval_ms:.3g}",
        f"{sum(through.errors.values()):,}",
        pair(through.first_us),
        pair(direct.first_us),
        pair(through.delay_us),
        pair(direct.delay_us),
        f"{through.largest_gap_us / 1000:.1f}",
        f"{direct.largest_gap_us / 1000:.1f}",
    ]


def what_streams_cost(count: int, held: HeldStreams) -> list[str]:
    through = held.through
    more = through.resident_bytes - held.idle_bytes
    return [
        f"{count:,} streams",
        MISSING if through.cpu_us is None else f"{through.cpu_us:.1f}",
        MISSING if through.cpu_share is None else f"{through.cpu_share:.0%}",
        # What a process takes with its first streams is not theirs alone.
        f"{more / count / 1000:.1f}" if count >= 64 else MISSING,
        f"{held.engine_cpu_share:.0%}",
        f"{through.client_cpu_share:.0%}",
    ]


# ---- bodies


def measure_bodies(settings: Settings) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Lab() as lab:
        ports = free_ports(ENGINE_PORTS)
        programs = {DIRECT: start_engine(lab, ports, 1, 1)}
        for policy in settings.body_policies:
            try:
                programs[policy] = start_router(lab, policy, worker_urls(ports, STREAM_WORKERS))
            except Unavailable as error:
                print(f"{policy}: not available: {error}.\n")
        for title, (size, requests) in BODIES.items():
            for name, program in programs.items():
                watched = None if name == DIRECT else program
                arguments = ["--check-length", "--body-bytes", str(size), "--bodies", "8"]
                arguments += ["--requests", str(max(8, requests // settings.shortening))]
                one = unary(program.port, watched, *arguments, "--connections", "1")
                many = unary(program.port, watched, *arguments, "--connections", "8")
                found.setdefault(title, {})[name] = {
                    "one": asdict(one),
                    "eight": asdict(many),
                    "mb_per_sec": size * many.requests / many.seconds / 1e6,
                }
    head = ["Bodies", "p50 ms", "p99 ms", "CPU µs a request", "MB/s, eight at once"]
    rows = [
        [
            f"{title}, {name}",
            f"{row['one']['p50_us'] / 1000:.3f}",
            f"{row['one']['p99_us'] / 1000:.3f}",
            MISSING if name == DIRECT else f"{row['one']['cpu_us']:,.0f}",
            f"{row['mb_per_sec']:,.1f}",
        ]
        for title, by_name in found.items()
        for name, row in by_name.items()
    ]
    print(table(head, rows) + "\n")
    return found


# ---- the command

PARTS = ("decisions", "workers", "streams", "bodies")


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is measured"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--policy", default="round_robin", help="for workers and streams")
    parser.add_argument("--body-policies", nargs="+", default=["round_robin", "cache_aware"])
    parser.add_argument("--decisions", type=int, default=20_000)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="for which they come")
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--hold", type=float, default=60.0, help="seconds all streams are open")
    parser.add_argument("--direct-hold", type=float, default=15.0, help="at most, without a router")
    parser.add_argument("--chunk-rate", type=float, default=5000.0, help="of all streams together")
    parser.add_argument("--quick", action="store_true", help="all of it, shortly: does it work?")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    quick = options.quick
    settings = Settings(
        policy=options.policy,
        body_policies=options.body_policies,
        decisions=1000 if quick else options.decisions,
        rate=options.rate,
        seconds=1.0 if quick else options.seconds,
        hold=2.0 if quick else options.hold,
        direct_hold=1.0 if quick else options.direct_hold,
        chunk_rate=options.chunk_rate,
        streams=[count for count in options.streams if count <= 1000 or not quick],
        shortening=10 if quick else 1,
    )
    descriptors = raise_descriptor_limit()
    facts = machine()
    print("; ".join(f"{name} {value}" for name, value in facts.items()) + "\n")
    disturbance = Disturbance()
    document: dict[str, Any] = {"machine": facts, "settings": asdict(settings)}
    try:
        if "decisions" in options.parts:
            document["decisions"] = measure_decisions(settings.decisions, WORKERS)
        if "workers" in options.parts:
            document["workers"] = measure_workers(settings)
        if "streams" in options.parts:
            document["streams"] = measure_streams(settings, descriptors)
        if "bodies" in options.parts:
            document["bodies"] = measure_bodies(settings)
    except (Failed, Unavailable) as error:
        raise SystemExit(f"the measurement failed: {error}") from error
    document["stolen_share"], document["others_share"] = disturbance.shares()
    print(disturbance.sentence())
    if options.json:
        Path(options.json).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(arguments())
