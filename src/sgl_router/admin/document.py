"""The OpenAPI document, and what FastAPI would say in it that is not so."""

from typing import Any

from fastapi import FastAPI

from sgl_router import __version__
from sgl_router.admin.schemas import ErrorBody

_NEVER_ANSWERED = "422"
_ITS_SCHEMAS = ("HTTPValidationError", "ValidationError")

_DESCRIPTIONS = {
    400: "The request is not as this document says",
    401: "The key is missing or wrong",
    403: "Changes are not taken from this client",
    404: "There is no such worker",
    409: "A worker with this URL is there already",
    413: "The body has more than 1 MiB",
    500: "The router failed; its log says why",
    502: "No engine gave an answer",
    503: "No worker is healthy",
}

Responses = dict[int | str, dict[str, Any]]


def described(status: int, model: type, description: str = "") -> Responses:
    """An error's place in the document; `description`: where it is not the status's usual one."""
    return {status: {"model": model, "description": description or _DESCRIPTIONS[status]}}


CHANGE = described(403, ErrorBody)
"""Of every route that changes something."""


PLAIN_TEXT: dict[str, Any] = {"content": {"text/plain": {"schema": {"type": "string"}}}}
"""Of a route whose class of answers has no content type: its errors are JSON all the same."""


class DocumentedApp(FastAPI):
    """An application whose document lists no 422: what FastAPI answers so is answered 400 here."""

    def __init__(self) -> None:
        super().__init__(
            title="sgl-router",
            version=__version__,
            summary="The control plane of a router for LLM inference engines",
            openapi_url=None,  # served behind the guard
            docs_url=None,  # both load scripts from the network
            redoc_url=None,
            redirect_slashes=False,
            generate_unique_id_function=lambda route: route.name,
            responses=described(500, ErrorBody),
        )

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            document = super().openapi()
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop(_NEVER_ANSWERED, None)
            for name in _ITS_SCHEMAS:
                document.get("components", {}).get("schemas", {}).pop(name, None)
        return super().openapi()
