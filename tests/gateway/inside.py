"""What tests look at inside a running router, because no client can see it."""

import asyncio
from typing import Any

from sgl_router.gateway.context import GatewayContext
from sgl_router.gateway.downstream import ClientConnection
from sgl_router.gateway.flow import ReadGate
from sgl_router.gateway.gateway import Gateway
from sgl_router.server import RouterServer


def left(server: RouterServer, before: set[asyncio.Task[Any]]) -> dict[str, object]:
    """What a router that was stopped has not given back; tasks of `before` it are not its own."""
    context = context_of(server)
    tasks = asyncio.all_tasks() - before
    counts: dict[str, object] = {
        "loads": sum(worker.load for worker in server.registry),
        "pending tokens": sum(worker.pending_tokens for worker in server.registry),
        "probes": sum(worker.probing for worker in server.registry),
        "requests": len(context.requests),
        "places": 0 if context.admission is None else sum(admission(server)),
        "client connections": len(gateway_of(server)._clients.connections),
        "idle engine connections": context.pool.idle,
        "tasks": [task for task in tasks if _is_routers(task)],
    }
    return {name: left for name, left in counts.items() if left}


def _is_routers(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    file = code.co_filename if code is not None else ""
    return "/sgl_router/" in file and "/sgl_router/demo/" not in file


def gateway_of(server: RouterServer) -> Gateway:
    assert server._gateway is not None, "it has been started"
    return server._gateway


def context_of(server: RouterServer) -> GatewayContext:
    return gateway_of(server)._context


def admission(server: RouterServer) -> tuple[int, int]:
    """Requests that have a place, and requests that wait for one."""
    gate = context_of(server).admission
    assert gate is not None, "there is a cap"
    return gate._admission.running, gate._admission.waiting


def client_connection(server: RouterServer) -> ClientConnection:
    """The only one."""
    (connection,) = gateway_of(server)._clients.connections
    return connection


def engine_reading(server: RouterServer) -> ReadGate:
    """Whether the engine of the only request is held back."""
    exchange = client_connection(server)._exchange
    assert exchange is not None and exchange.engine_reading is not None, "an engine has it"
    return exchange.engine_reading


class Clock:
    """The time by which a router judges what takes too long; it passes when it is told to."""

    def __init__(self, server: RouterServer) -> None:
        self.now = 1000.0
        self._gateway = gateway_of(server)
        context = context_of(server)
        context.clock = self
        context.dispatcher._clock_ns = lambda: int(self.now * 1e9)

    def __call__(self) -> float:
        return self.now

    def advance(self, secs: float) -> None:
        """Let time pass; deadlines are looked at before and after."""
        self._sweep()
        self.now += secs
        self._sweep()

    def _sweep(self) -> None:
        assert self._gateway._sweep is not None, "it listens"
        self._gateway._sweep.cancel()
        self._gateway._expire()
