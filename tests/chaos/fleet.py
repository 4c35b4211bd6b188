"""Engine processes that are killed, hung and started again, and when each could serve."""

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket

import orjson

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECS = 30
"""For an engine to start, or to do what it is told: only a machine that is stuck takes longer."""


@dataclass
class Timeline:
    """When something was so, and when not; times of the monotonic clock."""

    changes: list[tuple[float, bool]] = field(default_factory=list)

    def mark(self, so: bool) -> None:
        if not self.changes or self.changes[-1][1] != so:
            self.changes.append((time.monotonic(), so))

    def throughout(self, since: float, until: float) -> bool:
        """Whether it was so all the time between the two."""
        so = False
        for at, became in self.changes:
            if at > until:
                break
            if at > since and not (so and became):
                return False
            so = became
        return so

    def ever(self, since: float, until: float) -> bool:
        """Whether it was so at any time between the two."""
        so = False
        for at, became in self.changes:
            if at > until:
                break
            if at > since and (so or became):
                return True
            so = became
        return so


class EngineProcess:
    """One engine, always on the same port.

    Attributes:
        url: where it serves.
        log: the file in which all its processes write down what they do.
        serving: when it served, as a member of the router's pool.
        hung: when it was stopped: it takes requests, and does nothing with them.
        running, awake: whether it has a process, and whether that is not stopped.
        lock: held by whoever has it killed or stopped, until it is back.
    """

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.log = log
        self.serving = Timeline()
        self.hung = Timeline()
        self.running = False
        self.awake = False
        self.lock = asyncio.Lock()
        self._member = True
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def member(self) -> bool:
        """Whether it is in the router's pool, or about to leave it."""
        return self._member

    @member.setter
    def member(self, member: bool) -> None:
        self._member = member
        self._mark()

    async def start(self) -> None:
        """Returns when it accepts connections."""
        assert self._process is None, "one process at a time"
        module = [sys.executable, "-m", "tests.chaos.engine"]
        options = ["--port", str(self.port), "--log", str(self.log)]
        self._process = subprocess.Popen(  # noqa: ASYNC220 (the loop's own would be counted)
            [*module, *options], cwd=ROOT, stdin=subprocess.DEVNULL
        )
        async with asyncio.timeout(PATIENCE_SECS):
            while not await self._accepts():
                assert self._process.poll() is None, "the engine has ended: see its output"
                await asyncio.sleep(0.02)
        self.running = self.awake = True
        self._mark()

    async def kill(self) -> None:
        """SIGKILL: nothing is finished, nothing is said."""
        assert self._process is not None, "it runs"
        self.running = self.awake = False
        self._mark()
        process, self._process = self._process, None
        process.send_signal(signal.SIGKILL)
        while process.poll() is None:  # noqa: ASYNC110 (the kernel tells of it, but to no event)
            await asyncio.sleep(0.002)
        self.hung.mark(False)

    def hang(self) -> None:
        """SIGSTOP: the kernel goes on to accept connections for it."""
        assert self._process is not None, "it runs"
        self.awake = False
        self._mark()
        self.hung.mark(True)
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """SIGCONT."""
        assert self._process is not None, "it runs"
        self._process.send_signal(signal.SIGCONT)
        self.hung.mark(False)
        self.awake = True
        self._mark()

    async def tell(self, **command: int) -> None:
        """See `/chaos` in `engine.py`."""
        body = orjson.dumps(command)
        async with asyncio.timeout(PATIENCE_SECS):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                writer.write(
                    b"POST /chaos HTTP/1.1\r\nHost: e\r\nConnection: close\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
                )
                await reader.readuntil(b"\r\n\r\n")
            finally:
                writer.transport.abort()

    def _mark(self) -> None:
        self.serving.mark(self.running and self.awake and self._member)

    async def _accepts(self) -> bool:
        with socket() as probe:
            probe.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(probe, ("127.0.0.1", self.port))
            except ConnectionRefusedError:
                return False
            return True


def fleet(folder: Path, size: int) -> list[EngineProcess]:
    """So many engines, not yet started, on ports that are free."""
    probes = [socket() for _ in range(size)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return [EngineProcess(port, folder / f"engine-{port}.log") for port in ports]


async def end(engines: Sequence[EngineProcess]) -> None:
    """Kill those that run."""
    for engine in engines:
        if engine.running:
            await engine.kill()
