"""What supervisors and scrapers ask: is the process alive, can it serve, how does it do."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import PlainTextResponse

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import PLAIN_TEXT
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import NotReady, Ready

_METRICS = {
    "description": "The metrics, in the format that `Accept` asks for",
    "content": {
        "text/plain": {"schema": {"type": "string"}},
        "application/openmetrics-text": {"schema": {"type": "string"}},
    },
}


class Probes:
    """`/liveness`, `/health`, `/readiness` and `/metrics`: no key guards them."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    def add_routes(self, router: APIRouter) -> None:
        for path, endpoint in (("/liveness", self.liveness), ("/health", self.health)):
            router.get(path, response_class=Response, responses={200: PLAIN_TEXT})(endpoint)
        router.get(
            "/readiness",
            response_model=Ready,
            responses={503: {"model": NotReady, "description": "Requests would not be served"}},
        )(self.readiness)
        router.get("/metrics", response_class=Response, responses={200: _METRICS})(self.metrics)

    async def liveness(self) -> Response:
        """The process is alive; whether it can serve is for /readiness to say."""
        return PlainTextResponse("OK")

    async def health(self) -> Response:
        """The same as /liveness."""
        return PlainTextResponse("OK")

    async def readiness(self) -> Response:
        """Whether a request would find a worker; of a disaggregated pool, one of each half."""
        control = self._control
        if control.draining():
            return json_reply(NotReady("not ready", "draining"), 503)
        if not await control.verify_ready():
            return json_reply(NotReady("not ready", "insufficient healthy workers"), 503)
        available = sum(worker.available for worker in control.registry)
        return json_reply(Ready("ready", available, len(control.registry)))

    async def metrics(self, request: Request) -> Response:
        """The router's metrics, for Prometheus."""
        accept = request.headers.get("accept", "")
        body, content_type = await self._control.render_metrics(accept)
        return Response(body, headers={"Content-Type": content_type})
