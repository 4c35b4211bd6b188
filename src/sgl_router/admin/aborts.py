"""Requests that are to be stopped: passed on to the engine that has them, or to all."""

from fastapi import APIRouter, Request, Response

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import CHANGE, described
from sgl_router.admin.engines import ask_each, authorization
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import Aborted, AbortSpec, ErrorBody
from sgl_router.admin.security import Guard
from sgl_router.core.worker import Worker
from sgl_router.errors import EngineError, RequestError

ABORT_PATH = "/abort_request"

ABORT_TIMEOUT_SECS = 5.0
"""An engine says at once that it will stop a request."""


class Aborts:
    """`/abort_request`, in SGLang's shape.

    Of a request that this router passed on, the engine is known that has it. Any other may have
    come to an engine by another way: all are asked, and those that do not know it ignore it.

    Who may send requests may stop one whose id is known; to stop everybody's is a change of the
    control plane.
    """

    def __init__(self, control: ControlPlane, guard: Guard) -> None:
        self._control = control
        self._guard = guard

    def add_routes(self, router: APIRouter) -> None:
        router.post(
            ABORT_PATH,
            response_model=Aborted,
            responses={
                **described(400, ErrorBody),
                **(described(401, ErrorBody) if self._guard.has_admin_key else {}),
                **CHANGE,
                **described(404, ErrorBody, "There is no engine that took it"),
                **described(413, ErrorBody),
                **described(502, ErrorBody, "The engine that has the request cannot be reached"),
            },
        )(self.abort_request)

    async def abort_request(self, spec: AbortSpec, request: Request) -> Response:
        """Stop one request; or all of them, which needs what changes of the control plane need."""
        if spec.abort_all:
            self._guard.control_plane(request)
        else:
            self._guard.data_plane(request)
        # The admin key is not for engines.
        passed = None if spec.abort_all and self._guard.has_admin_key else request
        body = await request.body()
        has_it = None if spec.abort_all or not spec.rid else self._control.running_on(spec.rid)
        # A worker that is no longer given requests may still have some.
        workers = [w for w in self._control.registry if w.healthy or w.load]
        if has_it is not None:
            workers = [has_it]

        async def ask(worker: Worker) -> int:
            status, _, _ = await self._control.fetch(
                worker,
                ABORT_PATH,
                ABORT_TIMEOUT_SECS,
                authorization(worker, passed),
                method=b"POST",
                body=body,
            )
            return status

        answers = await ask_each(workers, ask)
        if has_it is not None and isinstance(answers[0], EngineError):
            raise RequestError(502, "call_upstream_error", f"it has the request: {answers[0]}")
        return _reply(workers, answers)


def _reply(workers: list[Worker], answers: list[int | EngineError]) -> Response:
    """Raises RequestError (404) where none of the engines took it."""
    took: list[str] = []
    problems: list[str] = []
    for worker, answer in zip(workers, answers, strict=True):
        if isinstance(answer, EngineError):
            problems.append(str(answer))
        elif 200 <= answer < 300:
            took.append(worker.url)
        else:
            problems.append(f"{worker.url}{ABORT_PATH} answered {answer}")
    shown = "; ".join(problems)[:1000]
    if not took:
        message = f"there is no engine that took it{': ' if shown else ''}{shown}"
        raise RequestError(404, "request_not_found", message)
    if problems:
        message = f"passed on to {len(took)} of {len(workers)} engines: {shown}"
        return json_reply(Aborted("partial_success", message, took))
    engines = "1 engine" if len(took) == 1 else f"{len(took)} engines"
    return json_reply(Aborted("success", f"passed on to {engines}", took))
