"""What makes hundreds of routers start quickly."""

from collections.abc import Iterator
from functools import cache
from ssl import SSLContext
from types import SimpleNamespace
from typing import cast

import pytest

from sgl_router.admin.document import DocumentedApp
from sgl_router.config import RouterConfig
from sgl_router.server import tls


@pytest.fixture(scope="package", autouse=True)
def _made_once() -> Iterator[None]:
    """The description of the control plane, for which nobody asks here, and the authorities that
    engines are checked against: each takes longer than most tests."""
    for_engines = tls.for_engines

    @cache
    def context(ca: tuple[str, ...], cert: str | None, key: str | None) -> SSLContext:
        settings = SimpleNamespace(ca_cert_paths=ca, client_cert_path=cert, client_key_path=key)
        return for_engines(cast(RouterConfig, settings))

    def remembered(config: RouterConfig) -> SSLContext:
        return context(config.ca_cert_paths, config.client_cert_path, config.client_key_path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tls, "for_engines", remembered)
        patch.setattr(DocumentedApp, "openapi", lambda _self: {})
        yield
