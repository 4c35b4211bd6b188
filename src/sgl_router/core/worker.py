"""A worker (one inference engine) and its live state."""

from enum import Enum
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from sgl_router.errors import ConfigError


class Health(Enum):
    """What the router knows of a worker; only an `UP` worker is given requests."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    DRAINING = "draining"


class Worker:
    """One inference engine.

    Attributes:
        id: stable for a URL, so that the same engine keeps its id over a restart of the router.
        url: `http://host:port[/prefix]`, no trailing slash.
        host, port: where to connect; an IPv6 host without its brackets.
        authority: the value of `Host` in requests to it.
        prefix: the URL's path as bytes, prepended to every request target.
        load: requests in flight on it through this router.
        health: see `Health`; changed by `WorkerRegistry.set_health` only.
        streak: health observations in a row that spoke against `health`.
    """

    __slots__ = ("authority", "health", "host", "id", "load", "port", "prefix", "streak", "url")

    def __init__(self, url: str, health: Health = Health.UNKNOWN) -> None:
        """Raises ConfigError where `url` is not an http URL with a host."""
        try:
            parts = urlsplit(url)
            port = parts.port
            host = parts.hostname or ""
            host.encode("idna")  # as the resolver will
        except ValueError as error:
            raise _refused(url, str(error)) from error
        if parts.scheme != "http" or not host or port == 0:
            raise _refused(url, "it has another form")
        if "?" in url or "#" in url or parts.username is not None:
            raise _refused(url, "it must not hold a query, a fragment or credentials")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise _refused(url, "it must be printable ASCII without spaces")
        self.url = url.rstrip("/")
        self.id = str(uuid5(NAMESPACE_URL, self.url))
        self.host = host
        self.port = 80 if port is None else port
        self.authority = parts.netloc.encode("ascii")
        self.prefix = parts.path.rstrip("/").encode("ascii")
        self.load = 0
        self.health = health
        self.streak = 0

    @property
    def healthy(self) -> bool:
        """Whether it may be given requests."""
        return self.health is Health.UP

    def __repr__(self) -> str:
        return f"<Worker {self.url} {self.health.value} load={self.load}>"


def _refused(url: str, why: str) -> ConfigError:
    return ConfigError(
        f"worker URL {url!r}: {why}; expected http://HOST:PORT, several of them separated by "
        "spaces (option --worker-urls)"
    )
