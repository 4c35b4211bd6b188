"""A router that may open no more files: that is its own trouble, and no worker's fault."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.gateway.support import (
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
)


@contextmanager
def no_more_files() -> Iterator[None]:
    """What is open stays so; nothing can be opened (EMFILE)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_requests_that_cannot_be_sent_count_against_no_worker() -> None:
    async with (
        ScriptedEngine(answering(respond(b"served"))) as engine,
        running(engine.url, disable_health_check=False, cb_failure_threshold=1) as server,
        connected(server) as client,
    ):
        await until(lambda: len(server.registry.view().eligible) == 1)
        (worker,) = server.registry
        with no_more_files():
            for _ in range(5):
                answer = await client.post()
                assert (answer.status, answer.error_code) == (502, "call_upstream_connect_error")
        assert (worker.available, worker.streak) == (True, 0)
        assert (await client.post()).body == b"served"


async def test_checks_that_cannot_be_made_count_against_no_worker(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with (
        ScriptedEngine(answering(respond(b"served"))) as engine,
        running(engine.url, disable_health_check=False, health_check_interval_secs=0.01) as server,
        connected(server) as client,
    ):
        await until(lambda: len(server.registry.view().eligible) == 1)
        (worker,) = server.registry
        with no_more_files():
            await until(lambda: len(caplog.records) > 5 or not worker.healthy)
        assert worker.healthy
        assert (await client.post()).body == b"served"
