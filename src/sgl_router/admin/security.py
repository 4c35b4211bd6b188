"""Who may read and change what.

To read is GET, to change is all else. The guards stand before a request's body is read.

| keys set   | to read the control plane          | to change it           |
|------------|------------------------------------|------------------------|
| admin      | the admin key                      | the admin key          |
| data plane | from this machine, or the data key | from this machine only |
| none       | everybody                          | from this machine only |

Probes and metrics are open to everybody. What is served here of the data plane needs the data
plane's key where there is one; to stop everybody's requests (`/abort_request` with `abort_all`) is
to change the control plane. A key is shown as `Authorization: Bearer KEY`, or in `X-Api-Key`, as
clients of the Messages API do; the data plane takes both too.

*From this machine* means that the peer has a loopback address, and that no header tells of a proxy:
behind a proxy on this machine, all the world has that address. A proxy that adds no such header
looks like a local client; with one, set the admin key.

A browser on this machine is on this machine as well, and runs anybody's pages. It sends `Origin`
with whatever is not GET or HEAD (Fetch standard, `Origin` header), to the page's own host too, so
that it does not help a page to have DNS point its name here. A change that has an `Origin` needs it
to be one of `--cors-allowed-origins`. `*` stands for all of them only where the admin key is asked
for: a page does not know that, and a browser does not add it by itself.
"""

import hmac
import ipaddress
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from sgl_router.admin.control import AdminSettings
from sgl_router.admin.strict import StrictRequest
from sgl_router.errors import RequestError

Check = Callable[[Request], None]
"""Raises RequestError where the request is refused; sees the head only."""

REALMS = {"unauthorized": "control-plane", "invalid_api_key": "data-plane"}
"""The code of a 401 -> whose key is missing."""

_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_PROXY_HEADERS = ("forwarded", "x-forwarded-for", "x-real-ip", "via")


class Guard:
    """Refuses requests, by the table above.

    Attributes:
        has_admin_key: whether the control plane asks for a key.
    """

    def __init__(self, settings: AdminSettings) -> None:
        self.has_admin_key = settings.admin_key is not None
        self._admin_key = settings.admin_key
        self._api_key = settings.api_key
        self._origins = settings.cors_origins

    def data_plane(self, request: Request) -> None:
        """Raises RequestError (401)."""
        if self._api_key is not None:
            _demand(
                request,
                self._api_key,
                "invalid_api_key",
                "the API key is missing or wrong (Authorization: Bearer …)",
            )

    def control_plane(self, request: Request) -> None:
        """Raises RequestError: 401 without the key, 403 from where changes are not taken."""
        change = request.method not in _SAFE_METHODS
        if self._admin_key is not None:
            _demand(
                request,
                self._admin_key,
                "unauthorized",
                "the control plane needs its key (Authorization: Bearer …), which is the one of "
                "option --admin-api-key",
            )
        elif change:
            _demand_local(request)
        elif not _is_local(request):
            self.data_plane(request)
        if change:
            self._refuse_foreign_page(request)

    def either_plane(self, request: Request) -> None:
        """For a path of which the body says whose it is; raises RequestError as `data_plane`."""
        try:
            self.control_plane(request)
        except RequestError:
            self.data_plane(request)

    def _refuse_foreign_page(self, request: Request) -> None:
        for origin in request.headers.getlist("origin"):
            allowed = origin in self._origins and origin != "*"
            if not allowed and not ("*" in self._origins and self._admin_key is not None):
                raise RequestError(
                    403,
                    "forbidden",
                    f"changes are not taken from pages of {origin!r:.200} "
                    "(option --cors-allowed-origins)",
                )


def guarded(*checks: Check) -> type[APIRoute]:
    """A class of routes that make these checks before the body is read, which is strict JSON."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                for check in checks:
                    check(request)
                return await handle(StrictRequest(request.scope, request.receive))

            return checked

    return GuardedRoute


def whom(request: Request) -> str:
    """Who asks, for the log."""
    return "an unknown client" if request.client is None else request.client.host


def _demand(request: Request, key: bytes, code: str, message: str) -> None:
    scheme, _, shown = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        shown = request.headers.get("x-api-key", "")
    # Starlette decodes headers as Latin-1, which loses nothing.
    if not hmac.compare_digest(shown.strip().encode("latin-1"), key):
        raise RequestError(401, code, message)


def _demand_local(request: Request) -> None:
    if not _has_loopback_address(request):
        raise RequestError(
            403,
            "forbidden",
            "changes are taken from the router's own machine only, where there is no admin key "
            "(option --admin-api-key)",
        )
    relayed = _relaying_header(request)
    if relayed is not None:
        raise RequestError(
            403,
            "forbidden",
            f"changes are not taken through a proxy (there is a header {relayed}), where there is "
            "no admin key (option --admin-api-key)",
        )


def _is_local(request: Request) -> bool:
    return _has_loopback_address(request) and _relaying_header(request) is None


def _relaying_header(request: Request) -> str | None:
    return next((name for name in _PROXY_HEADERS if name in request.headers), None)


def _has_loopback_address(request: Request) -> bool:
    """Whether the peer's address is in 127.0.0.0/8 or ::1, an IPv4 one mapped to IPv6 or not."""
    if request.client is None:
        return False
    try:
        address = ipaddress.ip_address(request.client.host)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        address = address.ipv4_mapped or address
    return address.is_loopback
