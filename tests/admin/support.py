"""The control plane's application on a real pool, with engines that answer what a test says."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from sgl_router.admin.app import create_app
from sgl_router.admin.control import AdminSettings, ControlPlane
from sgl_router.admin.document import DocumentedApp
from sgl_router.core.decision import Decision
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import EngineError
from tests.admin.plugin_control import FakePlugins

LOCAL = "127.0.0.1"
REMOTE = "192.0.2.7"
ADMIN_KEY = "admin-key"
API_KEY = "data-key"

_documents: dict[tuple[bool, bool], dict[str, Any]] = {}
"""What describes the control plane, by which keys there are: it takes longer than most tests."""


@dataclass(frozen=True)
class Asked:
    """One question to an engine."""

    url: str
    path: str
    method: bytes
    headers: bytes
    body: bytes


@dataclass
class FakeEngines:
    """Engines by URL and path; a path that is not there is answered 404, an error is raised."""

    answers: dict[tuple[str, str], tuple[int, bytes, bytes] | Exception] = field(
        default_factory=dict
    )
    asked: list[Asked] = field(default_factory=list)

    def answer(
        self, url: str, path: str, body: bytes, status: int = 200, content_type: bytes = b""
    ) -> None:
        self.answers[url, path] = (status, body, content_type or b"application/json")

    def break_off(self, url: str, path: str) -> None:
        self.answers[url, path] = EngineError(f"{url}{path}: connection refused")

    async def fetch(
        self,
        worker: Worker,
        path: str,
        timeout_secs: float,
        headers: bytes = b"",
        *,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> tuple[int, bytes, bytes]:
        assert timeout_secs > 0
        assert re.fullmatch(rb"(?:[!-9;-~]+: [^\r\n]+\r\n)*", headers), "whole lines"
        self.asked.append(Asked(worker.url, path, method, headers, body))
        answer = self.answers.get((worker.url, path), (404, b"", b""))
        if isinstance(answer, Exception):
            raise answer
        return answer


class FirstEligible(Policy):
    """Takes the first worker that may be taken."""

    name = "first"

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        return workers.eligible[0]


class Router:
    """What the application sees of a router.

    Attributes:
        dispatcher: a real one, whose requests keep workers from being removed.
        engines: what is behind the workers.
        drained: the workers that were drained.
        ready: what `verify_ready` says.
        running: the workers of requests under way, by the requests' ids.
        flushed: the workers whose engines have dropped their caches.
        draining: whether the router is about to stop.
        plugins: what there is of plugins.
    """

    def __init__(self, *workers: Worker | str, settings: AdminSettings | None = None) -> None:
        self.registry = WorkerRegistry()
        self.dispatcher = Dispatcher(
            self.registry,
            FirstEligible(),
            FirstEligible(),
            entropy=lambda: 0,
            now_ms=lambda: 0,
            clock_ns=lambda: 0,
        )
        for worker in workers:
            self.registry.add(worker if isinstance(worker, Worker) else up(worker))
        self.engines = FakeEngines()
        self.settings = settings or AdminSettings()
        self.drained: list[Worker] = []
        self.ready = True
        self.running: dict[str, Worker] = {}
        self.flushed: list[Worker] = []
        self.draining = False
        self.plugins = FakePlugins()
        self.control = ControlPlane(
            registry=self.registry,
            fetch=self.engines.fetch,
            add_worker=self.registry.add,
            drain_worker=self._drain,
            draining=lambda: self.draining,
            verify_ready=self._verify_ready,
            render_metrics=_render_metrics,
            running_on=self.running.get,
            cache_flushed=self.flushed.append,
            plugins=self.plugins,
            settings=self.settings,
        )

    @cached_property
    def app(self) -> FastAPI:
        keys = self.settings.admin_key is not None, self.settings.api_key is not None
        with pytest.MonkeyPatch.context() as patch:
            if (document := _documents.get(keys)) is not None:
                patch.setattr(DocumentedApp, "openapi", lambda _self: document)
            app = create_app(self.control)
        if document is None:
            _documents[keys] = app.openapi()
        return app

    @asynccontextmanager
    async def client(
        self, address: str | None = LOCAL, **headers: str
    ) -> AsyncIterator[httpx.AsyncClient]:
        """A client at that address, which sends these headers with every request."""
        peer: Any = None if address is None else (address, 40_000)
        transport = httpx.ASGITransport(self.app, client=peer)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://router", headers=named
        ) as client:
            yield client

    def begin_request(self) -> Decision:
        """A request that is under way on some worker."""
        return self.dispatcher.dispatch(RequestView("id", "/v1/completions"))

    def end_request(self, decision: Decision) -> None:
        outcome = Outcome(decision.worker.url, True, 200, 1.0, 2.0, 1, None)
        self.dispatcher.complete(decision, outcome)

    def _drain(self, worker: Worker) -> None:
        self.drained.append(worker)
        self.registry.set_health(worker, Health.DRAINING)
        if not worker.load:
            self.registry.remove(worker)

    async def _verify_ready(self) -> bool:
        return self.ready


def up(url: str, **settings: Any) -> Worker:
    """A worker that is up."""
    return Worker(url, Health.UP, **settings)


def error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in the OpenAI API's shape, the whole of which is checked."""
    body = response.json()
    assert body.keys() == {"error"}
    error = body["error"]
    assert error.keys() == {"type", "code", "message", "param"}
    assert isinstance(error["type"], str)
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["param"] is None
    assert response.headers["content-type"] == "application/json"
    code = error["code"]
    assert isinstance(code, str)
    return response.status_code, code


def workers_error_of(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an error in the shape of `/workers`."""
    body = response.json()
    assert body.keys() == {"error", "code"}
    assert isinstance(body["error"], str)
    assert body["error"]
    code = body["code"]
    assert isinstance(code, str)
    return response.status_code, code


async def _render_metrics(accept: str) -> tuple[bytes, str]:
    if "openmetrics" in accept:
        return b"# EOF\n", "application/openmetrics-text; version=1.0.0; charset=utf-8"
    return b"up 1\n", "text/plain; version=0.0.4; charset=utf-8"
