"""The data plane's questions that the router answers for its engines."""

from typing import Any

import orjson
from fastapi import APIRouter, Request, Response

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import described
from sgl_router.admin.engines import ask_each, authorization
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import ErrorBody, ModelList
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, RequestError

MODELS_TIMEOUT_SECS = 5.0
INFO_TIMEOUT_SECS = 5.0

GENERATE_TIMEOUT_SECS = 20.0
"""For the token that `/health_generate` has generated; SGLang gives up after as long."""

MAX_TRIES = 3
"""Workers asked for what any of them may answer, while they cannot be reached."""


class Models:
    """`/v1/models`, and the engine's own descriptions."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def add_routes(self, router: APIRouter) -> None:
        failures = {**described(502, ErrorBody), **described(503, ErrorBody)}
        router.get("/v1/models", response_model=ModelList, responses=failures)(self.list_models)
        passed_on: dict[int | str, dict[str, Any]] = {
            200: {"description": "One engine's answer, as it came"},
            500: {"description": "The engine failed, or the router did"},
            "default": {
                "description": "What the engine answers, as it came; else 502 where none gives "
                "an answer and 503 where none is healthy, each with an ErrorBody"
            },
        }
        for path, endpoint in (
            ("/get_model_info", self.get_model_info),
            ("/get_server_info", self.get_server_info),
            ("/health_generate", self.health_generate),
        ):
            router.get(path, response_class=Response, responses=passed_on)(endpoint)

    async def list_models(self, request: Request) -> Response:
        """The union of what the healthy workers list; of several with one id, the first."""
        workers = [worker for worker in self._control.registry if worker.healthy]
        if not workers:
            raise _no_worker()
        answers = await ask_each(workers, lambda worker: self._models_of(worker, request))
        models: dict[str, object] = {}
        failures: list[EngineError] = []
        for answer in answers:
            if isinstance(answer, EngineError):
                failures.append(answer)
            else:
                for model in answer:
                    models.setdefault(model["id"], model)
        if len(failures) == len(workers):
            raise _no_answer(failures)
        return json_reply({"object": "list", "data": list(models.values())})

    async def get_model_info(self, request: Request) -> Response:
        """What one healthy engine says of its model."""
        return await self._pass_on(request, INFO_TIMEOUT_SECS)

    async def get_server_info(self, request: Request) -> Response:
        """What one healthy engine says of itself."""
        return await self._pass_on(request, INFO_TIMEOUT_SECS)

    async def health_generate(self, request: Request) -> Response:
        """Whether one healthy engine generates a token."""
        return await self._pass_on(request, GENERATE_TIMEOUT_SECS)

    async def _pass_on(self, request: Request, timeout_secs: float) -> Response:
        """An answer to the request's path: of the first worker that gives one."""
        workers = [worker for worker in self._control.registry if worker.available]
        if not workers:
            raise _no_worker()
        failures: list[EngineError] = []
        for worker in workers[:MAX_TRIES]:
            headers = authorization(worker, request)
            try:
                status, body, content_type = await self._control.fetch(
                    worker, request.scope["path"], timeout_secs, headers
                )
            except EngineError as error:
                failures.append(error)
                continue
            passed = {"Content-Type": content_type.decode("latin-1")} if content_type else None
            return Response(body, status, passed)
        raise _no_answer(failures)

    async def _models_of(self, worker: Worker, request: Request) -> list[dict[str, Any]]:
        status, body, _ = await self._control.fetch(
            worker, "/v1/models", MODELS_TIMEOUT_SECS, authorization(worker, request)
        )
        try:
            data = orjson.loads(body)["data"]
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            raise _no_list(worker, status) from error
        if status != 200 or not isinstance(data, list):
            raise _no_list(worker, status)
        return [m for m in data if isinstance(m, dict) and isinstance(m.get("id"), str)]


def _no_list(worker: Worker, status: int) -> EngineError:
    return EngineError(f"{worker.url}/v1/models answered {status}, not a list")


def _no_worker() -> RequestError:
    return RequestError(503, "no_available_workers", "no worker is healthy")


def _no_answer(failures: list[EngineError]) -> RequestError:
    return RequestError(502, "call_upstream_error", "; ".join(map(str, failures))[:1000])
