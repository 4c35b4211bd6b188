"""Which requests go to an engine; all others are the router's own to answer."""

from sgl_router.core.request import ENDPOINTS
from sgl_router.errors import RequestError
from sgl_router.http1.request import RequestHead

_OWN = frozenset({"/v1/models"})


def is_proxied(head: RequestHead) -> bool:
    """Whether an engine answers it.

    Raises RequestError (405) where the path takes another method.
    """
    path = head.path
    if path in ENDPOINTS:
        if head.method == b"POST":
            return True
        if head.method == b"OPTIONS":
            return False  # a browser asks before it sends; see CORS
        raise RequestError(
            405, "method_not_allowed", f"{head.method.decode()} is not allowed at {path}; use POST"
        )
    return path.startswith("/v1/") and path not in _OWN and head.method != b"OPTIONS"
