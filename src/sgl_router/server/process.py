"""The router as a process: signals, and the event loop that it is made for."""

import asyncio
import gc
import logging
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from sgl_router.admin.workers import doubt
from sgl_router.config import RouterConfig
from sgl_router.errors import RouterError
from sgl_router.server.router import RouterServer

_T = TypeVar("_T")

RELOADED = frozenset({"policy", "prefill_policy", "decode_policy", "plugin", "plugin_config"})
"""The settings that are taken over while the router runs."""

SWITCH_SECS = 0.000_5
"""How long another thread may keep the GIL that the event loop waits for (Python: 5 ms). A plugin
on its own thread that makes one system call after the other wants it all the time."""

_log = logging.getLogger(__name__)


def run(config: RouterConfig, read_again: Callable[[], RouterConfig]) -> int:
    """Serve until SIGTERM or SIGINT; returns the process's exit status.

    At SIGHUP, what the settings say of plugins and policies is taken over.

    Args:
        config: the settings.
        read_again: reads them again from where they come from. Raises ConfigError.
    """
    _allow_descriptors()
    return run_loop(_serve(config, read_again))


def run_loop(main: Coroutine[Any, Any, _T]) -> _T:
    """Run a coroutine on the event loop that the router is made for."""
    return uvloop.run(main)


async def _serve(config: RouterConfig, read_again: Callable[[], RouterConfig]) -> int:
    server = RouterServer(config)
    loop = asyncio.get_running_loop()
    stopping, hung_up = asyncio.Event(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    loop.add_signal_handler(signal.SIGHUP, hung_up.set)
    if not await _started(server, stopping):
        return 0
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
    tune_interpreter()
    reloading = asyncio.create_task(_reload(server, config, read_again, hung_up))
    await stopping.wait()
    reloading.cancel()
    _log.info("stopping; requests under way have %g s", config.shutdown_grace_period_secs)
    stopping.clear()
    drained = asyncio.create_task(server.stop())
    again = asyncio.create_task(stopping.wait())
    await asyncio.wait({drained, again}, return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if not drained.done():
        _log.warning("stopped at once: asked a second time")
        drained.cancel()
        server.factory.close()  # the loop's threads are waited for, and may be compiling
        return 1
    return 0 if drained.result() else 1


async def _started(server: RouterServer, stopping: asyncio.Event) -> bool:
    """Start, which compiles plugins; False where it was given up, for it is to stop already."""
    starting = asyncio.create_task(server.start())
    asked = asyncio.create_task(stopping.wait())
    await asyncio.wait({starting, asked}, return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    started = starting.done()
    if started and starting.exception() is None:
        return True
    starting.cancel()
    await asyncio.wait({starting})
    await server.stop(0)
    if started:
        await starting  # raises
    _log.info("stopped before it had started")
    return False


async def _reload(
    server: RouterServer,
    config: RouterConfig,
    read_again: Callable[[], RouterConfig],
    hung_up: asyncio.Event,
) -> None:
    """Take changed settings over, whenever that is asked for."""
    while await hung_up.wait():
        hung_up.clear()
        try:
            after = await asyncio.to_thread(read_again)
            await server.reload(after)
        except RouterError as error:
            _log.error("the settings were read again and not taken over: %s", error)
            continue
        except Exception:  # noqa: BLE001 (whatever it is, the next signal is to be heeded)
            _log.exception("the settings were read again and not taken over")
            continue
        names = RouterConfig.model_fields.keys() - RELOADED
        others = sorted(name for name in names if getattr(config, name) != getattr(after, name))
        _log.info("the settings of plugins and policies were read again")
        if others:
            _log.warning("changed, but taken over at a restart only: %s", ", ".join(others))


def _allow_descriptors() -> None:
    """As many open files as the process may have.

    A stream takes two, and the usual soft limit of 1,024 is that low for the sake of programs that
    use select(2).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def tune_interpreter() -> None:
    """What the interpreter does is to hold up the event loop as little as it can.

    Garbage is collected where it arises, and seldom anywhere else, and a thread that waits for the
    GIL gets it soon (`SWITCH_SECS`).

    With thousands of streams under way, a full collection looks at hundreds of thousands of objects
    and stops everything for a tenth of a second; requests leave no cycles behind that it would find
    (a test counts them). What start-up has made is never looked at again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    sys.setswitchinterval(SWITCH_SECS)
