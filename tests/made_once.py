"""What makes thousands of routers start quickly: what each would make anew is made once."""

from collections.abc import Iterator
from functools import cache
from ssl import SSLContext
from typing import Any

import fastapi._compat.v2 as fastapi_fields
import pytest
from pydantic import TypeAdapter

from sgl_router.admin.document import DocumentedApp
from sgl_router.config import RouterConfig
from sgl_router.server import tls


@pytest.fixture(scope="session", autouse=True)
def made_once() -> Iterator[None]:
    """What checks and describes the control plane's bodies, and the system's authorities."""
    adapters: dict[tuple[str, str], tuple[Any, TypeAdapter[Any]]] = {}

    def adapter(annotation: Any, *, config: Any) -> TypeAdapter[Any]:
        key = repr(annotation), repr(config)
        if key not in adapters:  # it is kept as well: an address in its text stays its own
            adapters[key] = annotation, TypeAdapter(annotation, config=config)
        return adapters[key][1]

    for_engines = tls.for_engines

    @cache
    def usual_context() -> SSLContext:
        return for_engines(RouterConfig())

    def context(config: RouterConfig) -> SSLContext:
        files = config.ca_cert_paths, config.client_cert_path, config.client_key_path
        return for_engines(config) if any(files) else usual_context()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastapi_fields, "TypeAdapter", adapter)
        patch.setattr(tls, "for_engines", context)
        yield


@pytest.fixture(scope="package", autouse=True)
def no_document() -> Iterator[None]:
    """The OpenAPI document is not made: for packages in which nobody asks for it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DocumentedApp, "openapi", lambda _self: {})
        yield
