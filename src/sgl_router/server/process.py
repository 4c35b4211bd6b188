"""The router as a process: signals, and the event loop that it is made for."""

import asyncio
import gc
import logging
import resource
import signal
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

from sgl_router.admin.workers import doubt
from sgl_router.config import RouterConfig
from sgl_router.server.router import RouterServer

_T = TypeVar("_T")

_log = logging.getLogger(__name__)


def run(config: RouterConfig) -> int:
    """Serve until SIGTERM, SIGINT or SIGHUP; returns the process's exit status."""
    _allow_descriptors()
    return run_loop(_serve(config))


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on the event loop that the router is made for."""
    return uvloop.run(main)


async def _serve(config: RouterConfig) -> int:
    server = RouterServer(config)
    loop = asyncio.get_running_loop()
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stopping.set)
    try:
        await server.start()
    except BaseException:
        await server.stop(0)
        raise
    for said in filter(None, map(doubt, server.registry)):
        _log.warning("%s", said)
    if not len(server.registry):
        _log.warning("no workers: every request is answered 503 (option --worker-urls)")
    _log.info(
        "listening on %s://%s:%d, %d workers, policy %s",
        "https" if config.tls_cert_path else "http",
        f"[{config.host}]" if ":" in config.host else config.host,
        server.port,
        len(server.registry),
        config.policy,
    )
    _spare_collections()
    await stopping.wait()
    _log.info("stopping; requests under way have %g s", config.shutdown_grace_period_secs)
    stopping.clear()
    drained = asyncio.create_task(server.stop())
    again = asyncio.create_task(stopping.wait())
    await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drained.done():
        _log.warning("stopped at once: asked a second time")
        drained.cancel()
        return 1
    return 0 if drained.result() else 1


def _allow_descriptors() -> None:
    """As many open files as the process may have.

    A stream takes two, and the usual soft limit of 1,024 is that low for the sake of programs that
    use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _spare_collections() -> None:
    """Collect garbage where it arises, and seldom anywhere else.

    With thousands of streams under way, a full collection looks at hundreds of thousands of objects
    and stops everything for a tenth of a second; requests leave no cycles behind that it would find
    (a test counts them). What start-up has made is never looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
