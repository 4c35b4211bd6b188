"""The chaos run: one router in this process, engines that are killed, clients that leave."""

import asyncio
import gc
import random
import time
from asyncio import IncompleteReadError
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import orjson

from sgl_router.config import RouterConfig
from sgl_router.core.decision import Decision
from sgl_router.core.policy import Outcome
from sgl_router.core.worker import Worker
from sgl_router.gateway.attempt import Attempt
from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.downstream import ClientConnection
from sgl_router.gateway.exchange import Exchange
from sgl_router.gateway.upstream import EngineConnection
from sgl_router.server import RouterServer
from tests.chaos.clients import Ask, Client, Manner
from tests.chaos.fleet import PATIENCE_SECS, end, fleet
from tests.chaos.judge import Verdict, judge, read_logs

POLICIES = (
    *("round_robin", "power_of_two", "least_connections", "weighted_random"),
    *("cache_aware", "least_load", "random"),
)
"""Built in and plugins; those that read the body and those that do not."""

COUNTED = (ClientConnection, EngineConnection, Exchange, Attempt)
"""Of which nothing may be left when a router has stopped."""

IMAGE = "/memfd:wasm-memory-image"
PLUGINS = 2

QUEUE = 3
"""Requests that may wait; the next one is refused."""

PROGRESS_SECS = 5.0
PLAIN = Manner(False, 1, 0, 0, False, None, False)


@dataclass(frozen=True)
class Plan:
    """What a run is to be like; the same seed does the same things, if not at the same moments.

    Attributes:
        seed: of everything that is random.
        seconds: of trouble; starting, settling and judging come on top.
        engines: processes.
        clients: that ask at a time.
    """

    seed: int
    seconds: float
    engines: int = 4
    clients: int = 14


class Run:
    """One run.

    Attributes:
        asks: what the clients saw.
        troubles: what was done to the engines and the router, by name.
    """

    def __init__(self, plan: Plan, folder: Path, progress: Callable[[str], None]) -> None:
        self._plan = plan
        self._progress = progress
        self._engines = fleet(folder, plan.engines)
        self._workers: set[Worker] = set()
        self._spared = self._engines[0]
        self._over = False
        self._slowest = 0.0
        self._images = _descriptors(IMAGE)  # of other routers in this process
        self.asks: list[Ask] = []
        self.troubles: Counter[str] = Counter()

    async def judged(self) -> Verdict:
        """Run, and judge."""
        await asyncio.gather(*(engine.start() for engine in self._engines))
        try:
            before = _held()
            left = await self._routed()
            left |= await _leaked(before)
            logs = {engine.url: engine.log for engine in self._engines}
            return judge(self.asks, read_logs(logs), self._engines, left)
        finally:
            await end(self._engines)

    # ---- the router's life

    async def _routed(self) -> dict[str, int]:
        """Everything that happens while there is a router; what it counts at the end."""
        config = RouterConfig(
            host="127.0.0.1",
            port=0,
            worker_urls=tuple(engine.url for engine in self._engines),
            policy="round_robin",
            health_check_interval_secs=0.5,
            health_check_timeout_secs=1.0,
            worker_startup_check_interval=0.2,
            request_timeout_secs=10.0,
            first_byte_timeout_secs=2.5,
            stream_idle_timeout_secs=2.5,
            connect_timeout_secs=1.0,
            max_concurrent_requests=max(self._plan.clients - QUEUE - 1, 1),
            queue_size=QUEUE,
            queue_timeout_secs=2.0,
            retry_initial_backoff_ms=20,
            cb_timeout_duration_secs=0.5,
            cb_success_threshold=1,
            # On a busy machine a decision can be off the CPU for longer than the usual limit.
            plugin_config={
                name: {"max_execution_time_ms": 10_000}
                for name in ("least_connections", "weighted_random")
            },
        )
        server = RouterServer(config, on_complete=self._note)
        await server.start()
        try:
            await self._ready(server)
            await self._trouble(server)
            return await self._counted(server)
        finally:
            await server.stop(1.0)
            self._workers.clear()

    async def _trouble(self, server: RouterServer) -> None:
        """Clients ask while everything goes wrong; then all must be well again."""
        rng = random.Random(self._plan.seed)
        clients = [
            Client(server.port, random.Random(rng.random()), f"c{number}", self.asks)
            for number in range(self._plan.clients)
        ]
        asking = [asyncio.ensure_future(client.run(lambda: self._over)) for client in clients]
        until = time.monotonic() + self._plan.seconds
        monkeys = [
            self._repeat(until, random.Random(rng.random()), act)
            for act in (self._kill, self._kill, self._command)
        ]
        monkeys.append(self._repeat(until, random.Random(rng.random()), self._kill_all, 25.0))
        monkeys += [
            self._repeat(until, random.Random(rng.random()), lambda r: self._swap(server, r)),
            self._repeat(until, random.Random(rng.random()), lambda r: self._move(server, r), 4.0),
        ]
        telling = asyncio.ensure_future(self._tell(server))
        await asyncio.gather(*monkeys)
        for engine in self._engines:
            await engine.tell(calm=1)
        await self._ready(server)
        self._over = True
        await asyncio.gather(*asking)
        telling.cancel()
        await asyncio.gather(telling, return_exceptions=True)
        last = Client(server.port, rng, "last", self.asks)
        for _ in range(5 * self._plan.engines):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            await last.ask(reader, writer, PLAIN)
            writer.transport.abort()

    async def _ready(self, server: RouterServer) -> None:
        """Wait until every engine may be chosen again."""
        async with asyncio.timeout(PATIENCE_SECS):
            while len(server.registry.view().eligible) < len(self._engines):  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def _counted(self, server: RouterServer) -> dict[str, int]:
        """What must be zero when nobody asks any more; waits for it as long as it is sensible."""
        context = _inside(server)
        assert context.admission is not None, "it is limited"
        admission = context.admission._admission
        deadline = time.monotonic() + PATIENCE_SECS
        while True:
            workers = self._workers | set(server.registry)
            left = {
                "requests under way": len(context.requests),
                "requests admitted": admission.running,
                "requests waiting to be admitted": admission.waiting,
                "load of workers": sum(abs(worker.load) for worker in workers),
                "pending tokens of workers": sum(abs(w.pending_tokens) for w in workers),
                "probes of workers": sum(worker.probing for worker in workers),
                "images of plugins, one for each allowed,": max(
                    _descriptors(IMAGE) - self._images - PLUGINS, 0
                ),
                "last requests that failed": sum(
                    ask.outcome != "answered" for ask in self.asks if ask.id.startswith("last-")
                ),
            }
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.05)

    def _note(self, decision: Decision, outcome: Outcome) -> None:
        self._workers.add(decision.worker)

    # ---- monkeys

    async def _repeat(
        self,
        until: float,
        rng: random.Random,
        act: Callable[[random.Random], Awaitable[None]],
        pause_secs: float = 0.8,
    ) -> None:
        """Act again and again, with pauses of up to so many seconds."""
        while (left := until - time.monotonic()) > 0:
            pause = rng.random() * pause_secs
            await asyncio.sleep(min(pause, left))
            if pause < left:
                await act(rng)

    async def _kill(self, rng: random.Random) -> None:
        """Kill an engine, or have it hang, and have it back after a while."""
        engine = rng.choice(self._engines)
        if engine is self._spared or engine.lock.locked():
            return
        async with engine.lock:
            hang = rng.random() < 0.35
            if hang:
                engine.hang()
            else:
                await engine.kill()
            self.troubles["hung" if hang else "killed"] += 1
            await asyncio.sleep(rng.random() * (3.0 if hang else 1.0))
            if hang and rng.random() < 0.5:
                engine.wake()
                return
            if hang:
                await engine.kill()
            await engine.start()

    async def _kill_all(self, rng: random.Random) -> None:
        """Kill all engines; another one is spared from then on."""
        async with AsyncExitStack() as stack:
            for engine in self._engines:
                await stack.enter_async_context(engine.lock)
            self._spared = rng.choice(self._engines)
            await asyncio.gather(*(engine.kill() for engine in self._engines))
            self.troubles["all killed"] += 1
            await asyncio.sleep(rng.random())
            await asyncio.gather(*(engine.start() for engine in self._engines))

    async def _command(self, rng: random.Random) -> None:
        """Have an engine fail some of its requests, its process living on."""
        engine = rng.choice(self._engines)
        command = rng.choices(["reset", "drop", "garble", "decline"], [4, 2, 1, 2])[0]
        if engine.running:
            # It may be killed before it has heard of it.
            with suppress(ConnectionError, IncompleteReadError, TimeoutError):
                await engine.tell(**{command: rng.randrange(1, 4)})
                self.troubles[command] += 1

    async def _swap(self, server: RouterServer, rng: random.Random) -> None:
        await server.use_policy(rng.choice(POLICIES))
        self.troubles["policy swapped"] += 1

    async def _move(self, server: RouterServer, rng: random.Random) -> None:
        """Take a worker out of the pool, as an operator does, and add it again."""
        engine = rng.choice(self._engines)
        if engine is self._spared:
            return
        worker = server.registry.get(engine.url)
        assert worker is not None, "nobody else takes workers out"
        self._workers.add(worker)
        engine.member = False
        assert await _control(server, b"DELETE", f"/workers/{worker.id}") == 202
        await asyncio.sleep(rng.random())
        async with asyncio.timeout(PATIENCE_SECS):  # it drains first
            while await _control(server, b"POST", "/workers", {"url": engine.url}) != 202:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        engine.member = True
        self.troubles["worker moved"] += 1

    async def _tell(self, server: RouterServer) -> None:
        """A line now and then; and how long the loop was ever held up."""
        started = told = time.monotonic()
        while True:
            before = time.monotonic()
            await asyncio.sleep(0.05)
            now = time.monotonic()
            self._slowest = max(self._slowest, now - before - 0.05)
            if now - told >= PROGRESS_SECS:
                told = now
                self._progress(
                    f"{now - started:5.0f} s: {len(self.asks):,} requests, "
                    f"{len(_inside(server).requests)} under way, {_descriptors()} descriptors, "
                    f"{len(asyncio.all_tasks())} tasks, loop held up {self._slowest * 1000:.0f} "
                    "ms at most; " + ", ".join(f"{k} {n}" for k, n in self.troubles.items())
                )


# ---- looking inside


def _inside(server: RouterServer) -> GatewayContext:
    assert server._gateway is not None, "it is started"
    return server._gateway._context


def _descriptors(kind: str = "") -> int:
    """How many are open of those whose name begins so; all but two sorts that are not counted."""
    names = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which they are listed
            names.append(str(entry.readlink()))
    if kind:
        return sum(name.startswith(kind) for name in names)
    # The loop opens one when it first listens; a plugin's image is open as long as its module.
    return sum(not name.startswith(("/dev/null", IMAGE)) for name in names)


def _held() -> dict[str, int]:
    """What this process holds of what must not grow."""
    gc.collect()
    held = Counter(type(thing) for thing in gc.get_objects())
    return {
        "descriptors": _descriptors(),
        "tasks": len(asyncio.all_tasks()),
        **{f"{kind.__name__} objects": held[kind] for kind in COUNTED},
    }


async def _leaked(before: dict[str, int]) -> dict[str, int]:
    """What is held beyond `before`; sockets that were closed need a turn of the loop to go."""
    left: dict[str, int] = {}
    for _ in range(100):
        await asyncio.sleep(0.05)
        left = {name: count - before[name] for name, count in _held().items()}
        if not any(left.values()):
            break
    return left


async def _control(
    server: RouterServer, method: bytes, path: str, body: dict[str, str] | None = None
) -> int:
    """The status of a request to the control plane."""
    content = orjson.dumps(body) if body is not None else b""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(
            b"%b %b HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: "
            b"application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (method, path.encode(), len(content), content)
        )
        line = await reader.readline()
        return int(line.split()[1])
    finally:
        writer.transport.abort()


async def chaos(plan: Plan, folder: Path, progress: Callable[[str], None]) -> Verdict:
    """Run it.

    Args:
        plan: what it is to be like.
        folder: for the engines' logs.
        progress: is told a line every few seconds.
    """
    return await Run(plan, folder, progress).judged()
