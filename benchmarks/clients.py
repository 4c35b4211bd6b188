"""The clients' runs, each with what the program under test took meanwhile."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import HERE, Program
from workload import PATH, chat_bodies


class Failed(Exception):
    """A run whose figures would mean nothing; the text says why."""


@dataclass(frozen=True)
class UnaryRun:
    """Unary requests; times in µs.

    Attributes:
        cpu_us: of the program under test, for one request; 0 where none was watched.
        client_cpu_share: how much of one CPU the client took.
    """

    requests: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu_us: float
    client_cpu_share: float


@dataclass(frozen=True)
class StreamRun:
    """Streams held at once; times in µs.

    Attributes:
        errors: how often each thing went wrong.
        first_us, delay_us: p50, p99 and max: of the time to a stream's first chunk, and of the
            time that a chunk was on its way.
        largest_gap_us: the most by which two chunks of one stream came further apart than they
            were sent.
        cpu_us: of the program under test for one chunk, while all streams were open; None where
            none was watched, or they never all were.
        cpu_share: how much of one CPU the program under test took in that time.
        resident_bytes: of the program under test in that time.
        client_cpu_share: how much of one CPU the client took.
    """

    chunks: int
    errors: dict[str, int]
    first_us: dict[str, float]
    delay_us: dict[str, float]
    largest_gap_us: float
    cpu_us: float | None
    cpu_share: float | None
    resident_bytes: int
    client_cpu_share: float


def unary(port: int, watched: Program | None, *arguments: str) -> UnaryRun:
    """Run `load_client.py`; raises Failed where an answer was not what it should be."""
    before = 0.0
    result: dict[str, Any] = {}
    for result in _told("load_client.py", "--port", str(port), *arguments):
        if watched is not None and result["state"] == "ready":
            before = watched.cpu_us()
    spent = watched.cpu_us() - before if watched else 0.0
    if result["state"] == "failed":
        raise Failed(f"after {result['answered']:,} answers: {result['error']}")
    latency = result["latency_us"]
    return UnaryRun(
        requests=result["requests"],
        seconds=result["seconds"],
        p50_us=latency["p50"],
        p99_us=latency["p99"],
        cpu_us=spent / result["requests"],
        client_cpu_share=result["client_cpu_share"],
    )


class Wrk:
    """wrk, which asks again as soon as it is answered: what a program can do at most."""

    _SCRIPT = """
local requests, at = {}, 0
init = function(args)
  for body in io.lines("%(bodies)s") do
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "application/json"}, body)
  end
end
request = function()
  at = at %% #requests + 1
  return requests[at]
end
"""

    def __init__(self, program: str, folder: Path, body_bytes: int) -> None:
        bodies, self._script = folder / "bodies", folder / "post.lua"
        bodies.write_bytes(b"".join(body + b"\n" for body in chat_bodies(256, body_bytes)))
        self._script.write_text(self._SCRIPT % {"bodies": bodies})
        self._program = program

    def run(self, port: int, watched: Program, connections: int, seconds: float) -> UnaryRun:
        """Raises Failed where an answer was not 2xx, or a connection broke. No latencies."""
        before = watched.cpu_us()
        output = subprocess.run(
            [self._program, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s",
             str(self._script), f"http://127.0.0.1:{port}{PATH}"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        spent = watched.cpu_us() - before
        found = re.search(r"(\d+) requests in ([\d.]+)s", output)
        if found is None or "Non-2xx" in output or "Socket errors" in output:
            raise Failed(" / ".join(output.strip().splitlines()[-3:]))
        requests, taken = int(found[1]), float(found[2])
        return UnaryRun(requests, taken, 0.0, 0.0, spent / requests, 0.0)


@dataclass(frozen=True)
class StreamLoad:
    """How many streams at once, how many chunks each, how far apart, and over how many seconds
    they begin; the engine must have been started with the same chunks and interval."""

    streams: int
    chunks: int
    interval_ms: int
    ramp_secs: float

    @property
    def lasts_secs(self) -> float:
        return self.chunks * self.interval_ms / 1000


def streams(port: int, watched: Program | None, load: StreamLoad) -> StreamRun:
    """Run `stream_client.py`."""
    window: dict[str, tuple[float, float, int]] = {}  # seconds, CPU µs, chunks
    result: dict[str, Any] = {}
    resident = 0
    arguments = ["--streams", str(load.streams), "--chunks", str(load.chunks)]
    times = ["--ramp", str(load.ramp_secs), "--lasts", str(load.lasts_secs)]
    for result in _told("stream_client.py", "--port", str(port), *arguments, *times):
        if watched is not None and result["state"] != "done":
            window[result["state"]] = (time.monotonic(), watched.cpu_us(), result["chunks"])
            resident = max(resident, watched.resident_bytes())
    cpu_us = cpu_share = None
    if (first := window.get("steady")) and (last := window.get("ending")) and last[2] > first[2]:
        cpu_us = (last[1] - first[1]) / (last[2] - first[2])
        cpu_share = (last[1] - first[1]) / 1e6 / (last[0] - first[0])
    return StreamRun(
        result["chunks"],
        result["errors"],
        result["first_us"],
        result["delay_us"],
        result["largest_gap_us"],
        cpu_us,
        cpu_share,
        resident,
        result["client_cpu_share"],
    )


def _told(script: str, *arguments: str) -> Iterator[dict[str, Any]]:
    """What a client prints, line by line, the moment that it does; raises Failed where it dies."""
    command = [sys.executable, str(HERE / script), *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None, "it was asked for"
            yield from map(json.loads, client.stdout)
            client.wait()
        except BaseException:
            client.kill()
            raise
    if client.returncode:
        raise Failed(f"{script} ended with status {client.returncode}")
