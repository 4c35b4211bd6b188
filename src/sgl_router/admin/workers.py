"""The pool of workers over HTTP: `/workers`, and the three paths of older clients.

A change is made before it is answered; the answers say `accepted`, as the peers' do, because a new
worker is not used before a health check has found it, nor a removed one gone before its last
request has ended.
"""

import logging
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import PlainTextResponse

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import CHANGE, PLAIN_TEXT, described
from sgl_router.admin.replies import WORKERS_PATH, WorkersError, bad_request, json_reply
from sgl_router.admin.schemas import (
    MAX_LABELS,
    ErrorBody,
    WorkerAdded,
    WorkerChanged,
    WorkerInfo,
    WorkerList,
    WorkersErrorBody,
    WorkerSpec,
    WorkerStats,
    WorkerUpdate,
    WorkerUrl,
    WorkerUrls,
)
from sgl_router.admin.security import whom
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError, RequestError

_log = logging.getLogger(__name__)

ANY_MODEL = "unknown"
"""How the peers list a worker that is asked for any model."""

UrlParameter = Annotated[WorkerUrl, Query(json_schema_extra={"format": "uri"})]

_STATUS: dict[Health, Literal["pending", "ready", "not_ready", "draining"]] = {
    Health.UNKNOWN: "pending",
    Health.UP: "ready",
    Health.DOWN: "not_ready",
    Health.DRAINING: "draining",
}


class Workers:
    """`/workers`: lists, adds, changes and removes."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._registry = control.registry

    def add_routes(self, router: APIRouter) -> None:
        bad = {**described(400, WorkersErrorBody), **described(413, ErrorBody)}
        unknown = described(404, WorkersErrorBody)
        one = f"{WORKERS_PATH}/{{worker_id}}"
        location = {"description": "where it is listed", "schema": {"type": "string"}}
        router.get(WORKERS_PATH, response_model=WorkerList)(self.list_workers)
        router.post(
            WORKERS_PATH,
            status_code=202,
            response_model=WorkerAdded,
            responses={
                202: {"headers": {"Location": location}},
                **bad,
                **CHANGE,
                **described(409, WorkersErrorBody),
            },
        )(self.create_worker)
        router.get(one, response_model=WorkerInfo, responses=unknown)(self.get_worker)
        router.patch(
            one,
            status_code=202,
            response_model=WorkerChanged,
            responses={**bad, **CHANGE, **unknown},
        )(self.update_worker)
        router.delete(
            one, status_code=202, response_model=WorkerChanged, responses={**CHANGE, **unknown}
        )(self.delete_worker)

    async def list_workers(self) -> Response:
        """All workers, in the order in which they were added."""
        workers = [_info(worker) for worker in self._registry]
        roles = [worker.worker_type for worker in workers]
        stats = WorkerStats(roles.count("prefill"), roles.count("decode"), roles.count("regular"))
        return json_reply(WorkerList(workers, len(workers), stats))

    async def get_worker(self, worker_id: str) -> Response:
        """One worker."""
        return json_reply(_info(self._find(worker_id)))

    async def create_worker(self, spec: WorkerSpec, request: Request) -> Response:
        """Add a worker. It is used as soon as a health check has found it up."""
        try:
            worker = _make(spec)
        except ConfigError as error:
            raise WorkersError(400, "BAD_REQUEST", f"url: {error}") from error
        there = self._registry.get(worker.url)
        if there is not None:
            draining = ", which is draining" if there.health is Health.DRAINING else ""
            raise WorkersError(
                409,
                "WORKER_ALREADY_EXISTS",
                f"{there.url} is the worker {there.id}{draining}; use PATCH to change it",
            )
        _add(self._control, worker, request)
        location = f"{WORKERS_PATH}/{worker.id}"
        message = _told("; ".join(filter(None, ("worker added", doubt(worker)))), spec.unknown)
        added = WorkerAdded("accepted", worker.id, worker.url, location, message)
        return json_reply(added, 202, {"Location": location})

    async def update_worker(
        self, worker_id: str, update: WorkerUpdate, request: Request
    ) -> Response:
        """Change a worker's labels, priority, cost, weight and key."""
        worker = self._find(worker_id)
        labels = {**worker.labels, **(update.labels or {})}
        kept = {name: value for name, value in labels.items() if value is not None}
        if len(kept) > MAX_LABELS:
            message = f"labels: the worker would have {len(kept)}, at most {MAX_LABELS} are allowed"
            raise WorkersError(400, "BAD_REQUEST", message)
        worker.labels = kept
        if update.priority is not None:
            worker.priority = update.priority
        if update.cost is not None:
            worker.cost = update.cost
        if update.weight is not None:
            worker.weight = update.weight
        if update.api_key is not None:
            worker.api_key = update.api_key.get_secret_value()
        self._registry.changed()  # policies may have made something of what it was
        _log.info("worker %s is changed by %s", worker.url, whom(request))
        message = _told("worker changed", update.unknown)
        return json_reply(WorkerChanged("accepted", worker.id, message), 202)

    async def delete_worker(self, worker_id: str, request: Request) -> Response:
        """Give a worker no more requests, and forget it when its last one has ended."""
        worker = self._find(worker_id)
        drain(self._control, worker, request)
        left = f"; requests under way on it: {worker.load}" if worker.load else ""
        return json_reply(WorkerChanged("accepted", worker.id, f"worker removed{left}"), 202)

    def _find(self, worker_id: str) -> Worker:
        worker = self._registry.by_id(worker_id)
        if worker is None:
            message = f"there is no worker {worker_id!a:.100}"
            raise WorkersError(404, "WORKER_NOT_FOUND", message)
        return worker


class OlderClients:
    """The paths of before `/workers` (vllm-router and sglang-router 0.1 have them): plain text."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control
        self._registry = control.registry

    def add_routes(self, router: APIRouter) -> None:
        answers = {200: PLAIN_TEXT, **described(400, ErrorBody), **CHANGE}
        router.get("/list_workers", response_model=WorkerUrls)(self.list_worker_urls)
        router.post(
            "/add_worker",
            response_class=Response,
            responses={**answers, **described(409, ErrorBody)},
        )(self.add_worker)
        router.post("/remove_worker", response_class=Response, responses=answers)(
            self.remove_worker
        )

    async def list_worker_urls(self) -> Response:
        """The URLs of all workers."""
        return json_reply(WorkerUrls([worker.url for worker in self._registry]))

    async def add_worker(self, url: UrlParameter, request: Request) -> Response:
        """Add a worker."""
        worker = _regular(url)
        if self._registry.get(worker.url) is not None:
            raise RequestError(409, "worker_already_exists", f"worker {worker.url} already exists")
        _add(self._control, worker, request)
        return PlainTextResponse(f"Successfully added worker: {worker.url}")

    async def remove_worker(self, url: UrlParameter, request: Request) -> Response:
        """Give a worker no more requests, and forget it when its last one has ended.

        Succeeds for a worker that is not there too, so that an engine that goes may ask twice.
        """
        asked = _regular(url)
        worker = self._registry.get(asked.url)
        if worker is None:
            return PlainTextResponse(f"There is no worker: {asked.url}")
        drain(self._control, worker, request)
        return PlainTextResponse(f"Successfully removed worker: {worker.url}")


def require_json(request: Request) -> None:
    """Raises RequestError where a body is not declared as JSON.

    A page of another origin can send other types without asking first (Fetch standard,
    CORS-safelisted request headers).
    """
    if request.method in ("POST", "PUT", "PATCH"):
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            message = f"Content-Type is {media_type!a:.100}; expected application/json"
            raise bad_request(request, message)


def require_json_if_any(request: Request) -> None:
    """As `require_json`, where a body is announced."""
    headers = request.headers
    if "transfer-encoding" in headers or headers.get("content-length", "0") != "0":
        require_json(request)


def doubt(worker: Worker) -> str:
    """What is probably a mistake about a worker, for whoever gives it; empty where nothing is."""
    if worker.prefix.endswith(b"/v1"):
        return f"{worker.url} is put before each request's own /v1/…: leave out its /v1"
    return ""


def drain(control: ControlPlane, worker: Worker, request: Request) -> None:
    """Have the worker drained, where it is not being already."""
    if worker.health is not Health.DRAINING:
        control.drain_worker(worker)
        _log.info("worker %s is drained for %s", worker.url, whom(request))


def _add(control: ControlPlane, worker: Worker, request: Request) -> None:
    control.add_worker(worker)
    _log.info("worker %s is added by %s", worker.url, whom(request))
    if said := doubt(worker):
        _log.warning("%s", said)


def _make(spec: WorkerSpec) -> Worker:
    """Raises ConfigError where the URL is none of a worker."""
    return Worker(
        spec.url,
        role=spec.worker_type or "regular",
        model_id=None if spec.model_id == ANY_MODEL else spec.model_id,
        labels=spec.labels,
        api_key=None if spec.api_key is None else spec.api_key.get_secret_value(),
        bootstrap_port=spec.bootstrap_port,
        **spec.model_dump(include={"priority", "cost", "weight"}, exclude_none=True),
    )


def _regular(url: str) -> Worker:
    try:
        return Worker(url)
    except ConfigError as error:
        raise RequestError(400, "bad_request", f"url: {error}") from error


def _info(worker: Worker) -> WorkerInfo:
    return WorkerInfo(
        id=worker.id,
        url=worker.url,
        model_id=worker.model_id or ANY_MODEL,
        worker_type=worker.role,
        is_healthy=worker.healthy,
        status=_STATUS[worker.health],
        circuit=worker.circuit.value,
        load=worker.load,
        priority=worker.priority,
        cost=worker.cost,
        weight=worker.weight,
        labels=worker.labels,
        bootstrap_port=worker.bootstrap_port,
    )


def _told(done: str, unknown: list[str]) -> str:
    """What was done, and what was not understood."""
    if not unknown:
        return done
    more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return (
        f"{done}; unknown keys were ignored: {', '.join(f'{k!a:.64}' for k in unknown[:5])}{more}"
    )
