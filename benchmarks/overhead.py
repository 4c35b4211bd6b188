"""What this router, nginx, haproxy and the routers from PyPI add to a request and to a chunk.

Hard about it: what a proxy does for a request takes tens of microseconds, half of them in the
kernel, and on a shared or virtual machine whatever else runs is worth more than that.

- Wall-clock times of two runs cannot be compared, so all programs run in one go, in rounds, each
  round beginning with another one, and the figures are medians over the rounds.
- CPU time is the processes' own, by the kernel's clock of each process.
- A client that asks again when it is answered slows down together with what it measures. Latencies
  are therefore taken at a fixed rate that all can serve, and counted from when a request was due
  (`load_client.py`); those straight to the engine, which begin each round, are subtracted: the
  difference of the medians, and of the 99th percentiles, which is not the 99th percentile of what
  is added. Only requests/s come from a client that
  asks without a pause (wrk), and so do the CPU times under saturation beside them: a busy program
  takes several requests each time it wakes up, and each is cheaper for it.
- The engine must not be what is measured: nginx answers unary requests with 600 bytes it has ready
  (at four ports, so that there is something to balance), `engine.py` sends the chunks of streams at
  a pace, each stream at its own phase. Neither's CPU time is counted.
- To wake a process on an idle CPU costs the waker more than the request, on a virtual machine above
  all. By default nothing is pinned, as an operator would have it; `--one-cpu` keeps everything on
  one CPU, where nobody is woken elsewhere, and programs with several threads lose nothing by them.

    python benchmarks/overhead.py --peers VENV [VENV…] [--one-cpu] [--json FILE] [--plot FILE.svg]
    python benchmarks/overhead.py --quick

Needs nginx and wrk (Debian: apt install nginx-light wrk haproxy). Each router from PyPI is looked
for in the virtual environments given by --peers (or BENCHMARK_PEERS, separated by colons), then on
PATH; `--smg "COMMAND"` or BENCHMARK_SMG names one that is elsewhere. What is not there is said to
be left out. For three of them:

    python -m venv VENV && VENV/bin/pip install sglang-router smg vllm-router
"""

import argparse
import json
import os
import statistics
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import chart
from clients import Failed, StreamLoad, Wrk, streams, unary
from contestants import PEERS, Contestant, find_all, nginx_engine
from lab import (
    Disturbance,
    Lab,
    Program,
    Unavailable,
    find_program,
    free_ports,
    machine,
    raise_descriptor_limit,
    start_engine,
    use_one_cpu,
)
from tables import MISSING, table

BODY_BYTES = 1100
DIRECT = "straight to the engine"
BASES = ("sglang-router", "nginx")
TABLES = {
    "CPU time in µs": {
        "paced_cpu_us": ("a request, paced", 1),
        "full_cpu_us": ("a request, saturated", 1),
        "chunk_cpu_us": ("a streamed chunk", 1),
    },
    "Latency added in µs": {
        "added_p50_us": ("a request, p50", 0),
        "added_p99_us": ("p99", 0),
        "chunk_added_p50_us": ("a chunk, p50", 0),
        "chunk_added_p99_us": ("p99", 0),
    },
    "Throughput and resident MB": {
        "full_rate": ("requests/s, saturated", 0),
        "idle_mb": ("MB idle", 0),
        "loaded_mb": ("MB after load", 0),
        "streams_mb": ("MB with the streams", 0),
    },
}
"""What is measured: heading and decimals. Only of requests/s is more better."""


@dataclass(frozen=True)
class Settings:
    """Of one run; `seconds` is how long each program is measured in each way, in each round."""

    rounds: int
    seconds: float
    rate: float
    connections: int
    streams: int
    interval_ms: int
    engine_ports: int
    one_cpu: bool

    @property
    def stream_load(self) -> StreamLoad:
        chunks = round(self.seconds * 1000 / self.interval_ms) + 1
        return StreamLoad(self.streams, chunks, self.interval_ms, min(0.5, self.seconds / 2))


@dataclass
class Results:
    """Figures by program and measure, one for each round.

    Attributes:
        direct: latencies straight to the engine, by measure.
        failures: by program, why some of its figures are missing.
        client_cpu_share: the most that a client of a fixed pace took of one CPU.
    """

    figures: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    direct: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    client_cpu_share: float = 0.0

    def add(self, name: str, **figures: float | None) -> None:
        row = self.direct if name == DIRECT else self.figures.setdefault(name, {})
        for measure, value in figures.items():
            if value is not None:
                row.setdefault(measure, []).append(value)

    def fail(self, name: str, why: str) -> None:
        self.failures[name] = why
        print(f"  {name}: {why}", file=sys.stderr)

    def median(self, name: str, measure: str) -> float | None:
        values = self.figures.get(name, {}).get(measure)
        return statistics.median(values) if values else None


# ---- measuring


def start(
    lab: Lab, contestants: list[Contestant], ports: list[int], results: Results
) -> dict[str, Program]:
    """All that can be started, by name; why the others cannot is noted."""
    running = {}
    for contestant in contestants:
        try:
            running[contestant.name] = contestant.start(lab, ports)
        except Unavailable as error:
            results.fail(contestant.name, f"not available: {error}")
    return running


def rotated(names: list[str], turn: int) -> list[str]:
    """Each round begins with another one, so that nobody always comes after the same."""
    at = turn % max(1, len(names))
    return names[at:] + names[:at]


def measure_unary(
    lab: Lab, contestants: list[Contestant], settings: Settings, results: Results
) -> None:
    """Requests with one answer: at the fixed rate, then without a pause."""
    nginx, wrk_path = find_program("nginx"), find_program("wrk")
    assert nginx is not None and wrk_path is not None, "looked for before"
    ports = free_ports(settings.engine_ports)
    engine = nginx_engine(lab, nginx, ports)
    wrk = Wrk(wrk_path, lab.subfolder("wrk"), BODY_BYTES)
    running = start(lab, contestants, ports, results)
    for name, program in running.items():
        results.add(name, idle_mb=program.resident_bytes() / 1e6)
    connections = ["--connections", str(settings.connections), "--body-bytes", str(BODY_BYTES)]
    paced = [*connections, "--rate", str(settings.rate), "--seconds", str(settings.seconds)]
    for turn in range(-1, settings.rounds):
        direct = unary(engine.port, None, *paced)
        if turn >= 0:
            results.add(DIRECT, p50_us=direct.p50_us, p99_us=direct.p99_us)
        for name in rotated(list(running), turn):
            program = running[name]
            try:
                if turn < 0:  # warms up caches and connections
                    unary(program.port, None, *connections, "--requests", "1000")
                    continue
                run = unary(program.port, program, *paced)
                full = wrk.run(program.port, program, settings.connections, settings.seconds)
            except Failed as error:
                results.fail(name, f"unary requests failed: {error}")
                running.pop(name).stop()
                continue
            results.client_cpu_share = max(results.client_cpu_share, run.client_cpu_share)
            results.add(
                name,
                paced_cpu_us=run.cpu_us,
                added_p50_us=run.p50_us - direct.p50_us,
                added_p99_us=run.p99_us - direct.p99_us,
                full_cpu_us=full.cpu_us,
                full_rate=full.requests / full.seconds,
            )
    for name, program in running.items():
        results.add(name, loaded_mb=program.resident_bytes() / 1e6)
    for program in (*running.values(), engine):
        program.stop()


def measure_streams(
    lab: Lab, contestants: list[Contestant], settings: Settings, results: Results
) -> None:
    """Streams at a fixed pace: what a chunk costs and how much later it comes."""
    load = settings.stream_load
    ports = free_ports(settings.engine_ports)
    engine = start_engine(lab, ports, load.chunks, load.interval_ms)
    known = [contestant for contestant in contestants if contestant.name in results.figures]
    running = start(lab, known, ports, results)
    for turn in range(settings.rounds):
        direct = streams(engine.port, None, load)
        results.add(
            DIRECT, chunk_p50_us=direct.delay_us["p50"], chunk_p99_us=direct.delay_us["p99"]
        )
        for name in rotated(list(running), turn):
            try:
                run = streams(running[name].port, running[name], load)
                if run.errors:
                    raise Failed(str(run.errors))
            except Failed as error:
                results.fail(name, f"streams failed: {error}")
                running.pop(name).stop()
                continue
            if run.cpu_us is None:
                results.fail(name, "no CPU per chunk: its streams never were all open at once")
            results.client_cpu_share = max(results.client_cpu_share, run.client_cpu_share)
            results.add(
                name,
                chunk_cpu_us=run.cpu_us,
                streams_mb=run.resident_bytes / 1e6,
                chunk_added_p50_us=run.delay_us["p50"] - direct.delay_us["p50"],
                chunk_added_p99_us=run.delay_us["p99"] - direct.delay_us["p99"],
            )
    for program in (*running.values(), engine):
        program.stop()


# ---- reporting


def print_tables(results: Results) -> None:
    """Every figure, and in brackets what multiple it is of each base's."""
    present = [base for base in BASES if base in results.figures]
    print(f"In brackets: multiples of {' and of '.join(present) or 'nothing'}.")
    for base in set(BASES) - set(present):
        print(f"There are no multiples of {base}, which was not measured.")
    for title, measures in TABLES.items():
        head = [title, *(heading for heading, _ in measures.values())]
        rows = [
            [
                name,
                *(cell(results, present, name, m, digits) for m, (_, digits) in measures.items()),
            ]
            for name in results.figures
        ]
        print(f"\n{table(head, rows)}")


def cell(results: Results, bases: list[str], name: str, measure: str, digits: int) -> str:
    value = results.median(name, measure)
    if value is None:
        return MISSING
    units = [results.median(base, measure) for base in bases]
    # Where a base adds nothing that could be measured, there is no multiple of it.
    ratios = [f"{value / unit:.2f}" if unit and unit > 0 < value else MISSING for unit in units]
    return f"{value:,.{digits}f} ({', '.join(ratios)})" if ratios else f"{value:,.{digits}f}"


def print_notes(settings: Settings, results: Results) -> None:
    direct = {measure: statistics.median(values) for measure, values in results.direct.items()}
    spreads = {
        name: max(figures["paced_cpu_us"]) / min(figures["paced_cpu_us"]) - 1
        for name, figures in results.figures.items()
        if figures.get("paced_cpu_us")
    }
    widest = max(spreads, key=lambda name: spreads[name], default=None)
    print(
        f"\nStraight to the engine: p50 {direct['p50_us']:.0f} µs, p99 {direct['p99_us']:.0f} µs a "
        f"request; p50 {direct['chunk_p50_us']:.0f} µs, p99 {direct['chunk_p99_us']:.0f} µs a "
        f"chunk.\nThe paced clients took at most {results.client_cpu_share:.0%} of a CPU."
    )
    if widest is not None and settings.rounds > 1:
        print(
            f"CPU per paced request differed most between rounds with {widest}: "
            f"by {spreads[widest]:.0%}."
        )


def describe(settings: Settings, facts: dict[str, str]) -> None:
    load = settings.stream_load
    print("; ".join(f"{name} {value}" for name, value in facts.items()))
    print(
        f"\n{settings.rounds} rounds of {settings.seconds:g} s, medians; {BODY_BYTES:,}-byte chat "
        f"requests, {settings.connections} keep-alive connections, {settings.engine_ports} engine "
        f"ports. Paced: {settings.rate:,.0f} requests/s; saturated: wrk. {load.streams} streams "
        f"of {1000 / load.interval_ms:g} chunks/s each. "
        f"{'All on one CPU.' if settings.one_cpu else 'Nothing pinned.'}\n"
    )


def save(path: str, document: dict[str, Any]) -> None:
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


# ---- the command


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is measured"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="a measure, program and round")
    parser.add_argument("--rate", type=float, default=1000.0, help="paced requests a second")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--interval-ms", type=int, default=10, help="between chunks of a stream")
    parser.add_argument("--engine-ports", type=int, default=4, help="addresses of the engine")
    parser.add_argument("--one-cpu", action="store_true", help="keep everything on one CPU")
    parser.add_argument("--quick", action="store_true", help="one short round: does it all work?")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="measure these programs only")
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    parser.add_argument("--plot", metavar="FILE.svg", help="draw them (needs matplotlib)")
    default = [
        folder for folder in os.environ.get("BENCHMARK_PEERS", "").split(os.pathsep) if folder
    ]
    parser.add_argument("--peers", nargs="+", metavar="VENV", default=default)
    for peer in PEERS:
        parser.add_argument(f"--{peer.name}", dest=peer.name, metavar="COMMAND")
    return parser.parse_args()


def main(options: argparse.Namespace) -> None:
    settings = Settings(
        rounds=1 if options.quick else options.rounds,
        seconds=0.5 if options.quick else options.seconds,
        rate=options.rate,
        connections=options.connections,
        streams=options.streams,
        interval_ms=options.interval_ms,
        engine_ports=options.engine_ports,
        one_cpu=options.one_cpu,
    )
    absent = [name for name in ("nginx", "wrk") if find_program(name) is None]
    if absent:
        raise SystemExit(f"needs {' and '.join(absent)} (Debian: apt install nginx-light wrk)")
    if options.plot:
        chart.require_matplotlib()
    raise_descriptor_limit()
    if settings.one_cpu:
        use_one_cpu()
    commands = {peer.name: getattr(options, peer.name) for peer in PEERS}
    contestants, left_out = find_all(commands, options.peers, one_cpu=settings.one_cpu)
    if options.only:
        known = [contestant.name for contestant in contestants]
        if unknown := set(options.only) - set(known):
            raise SystemExit(
                f"{', '.join(unknown)}: not there; there are {', '.join(known)} (option --only)"
            )
        contestants = [c for c in contestants if c.name in options.only]
    facts = {**machine(), **{c.name.split()[0]: c.version for c in contestants}}
    describe(settings, facts)
    results, disturbance = Results(), Disturbance()
    try:
        with Lab() as lab:
            measure_unary(lab, contestants, settings, results)
            measure_streams(lab, contestants, settings, results)
    except Failed as error:
        raise SystemExit(f"straight to the engine: {error}") from error
    print_tables(results)
    print_notes(settings, results)
    print(disturbance.sentence())
    stolen, others = disturbance.shares()
    for name, why in {**left_out, **results.failures}.items():
        print(f"Left out, or in part: {name}: {why}.")
    document = {
        "machine": facts,
        "settings": asdict(settings),
        "left_out": left_out,
        "stolen_share": stolen,
        "others_share": others,
        **asdict(results),
    }
    if options.json:
        save(options.json, document)
    if options.plot:
        chart.draw(document, options.plot)


if __name__ == "__main__":
    main(arguments())
