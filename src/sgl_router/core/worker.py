"""A worker (one inference engine) and its live state."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Literal
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

from sgl_router.errors import ConfigError

Role = Literal["regular", "prefill", "decode"]
"""What a worker does of a request: all of it, or one of the two halves of it."""


class Health(Enum):
    """What the router knows of a worker; only an `UP` worker is given requests."""

    UNKNOWN = "unknown"
    UP = "up"
    DOWN = "down"
    DRAINING = "draining"


class Circuit(Enum):
    """Whether a worker's breaker lets requests through; see `core/breaker.py`."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True)
class EngineMetrics:
    """What an engine last said of itself.

    Attributes:
        queued, running: requests.
        kv_usage: share of its KV cache in use, 0 to 1; None where it does not say.
        at_ms: when it said so, in Unix milliseconds.
    """

    queued: int
    running: int
    kv_usage: float | None
    at_ms: int


class Worker:
    """One inference engine.

    Attributes:
        id: stable for a URL, so that the same engine keeps its id over a restart of the router.
        url: `http://host:port[/prefix]` or https, scheme and host in lower case, no trailing slash.
        tls: whether it is spoken to over TLS.
        host, port: where to connect; an IPv6 host without its brackets.
        authority: the value of `Host` in requests to it.
        prefix: the URL's path as bytes, prepended to every request target.
        routed_line: the header line by which an answer names it (name: smg's).
        role: see `Role`.
        model_id: the one model that it serves; None: it is asked for any.
        labels, priority, cost: kept for the operator and shown in listings.
        weight: its share beside others, for policies that weigh.
        api_key: replaces the client's `Authorization`; never logged or listed.
        bootstrap_port: of a prefill engine's bootstrap server (SGLang).
        load: requests in flight on it through this router.
        pending_tokens: estimated prompt tokens sent to it that have not yet led to a first byte;
            counted while a policy needs it.
        unreported_tokens: those sent since its engine last published metrics.
        metrics: what its engine last said of itself, where that is polled.
        ttft_ms: moving average of the time to the first byte of an answer; None before the first.
        health: see `Health`; changed by `WorkerRegistry.set_health` only.
        streak: health observations in a row that spoke against `health`.
        circuit, probing: its breaker's; changed by `WorkerRegistry.set_circuit` only.
        ended: requests that have ended on it.
        watched_by: sets that the worker is added to by `touched`.
    """

    __slots__ = (
        "api_key",
        "authority",
        "bootstrap_port",
        "circuit",
        "cost",
        "ended",
        "health",
        "host",
        "id",
        "labels",
        "load",
        "metrics",
        "model_id",
        "pending_tokens",
        "port",
        "prefix",
        "priority",
        "probing",
        "role",
        "routed_line",
        "streak",
        "tls",
        "ttft_ms",
        "unreported_tokens",
        "url",
        "watched_by",
        "weight",
    )

    def __init__(
        self,
        url: str,
        health: Health = Health.UNKNOWN,
        *,
        role: Role = "regular",
        model_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        priority: int = 50,
        cost: float = 1.0,
        weight: float = 1.0,
        api_key: str | None = None,
        bootstrap_port: int | None = None,
    ) -> None:
        """Raises ConfigError where `url` is not an http or https URL with a host."""
        self._locate(url)
        self.id = str(uuid5(NAMESPACE_URL, self.url))
        self.routed_line = b"x-smg-routed-worker-id: %b\r\n" % self.id.encode("ascii")
        self.role: Role = role
        self.model_id = model_id
        self.labels = dict(labels or {})
        self.priority = priority
        self.cost = cost
        self.weight = weight
        self.api_key = api_key
        self.bootstrap_port = bootstrap_port
        self.load = 0
        self.pending_tokens = 0
        self.unreported_tokens = 0
        self.metrics: EngineMetrics | None = None
        self.ttft_ms: float | None = None
        self.health = health
        self.streak = 0
        self.circuit = Circuit.CLOSED
        self.probing = False
        self.ended = 0
        self.watched_by: tuple[set[Worker], ...] = ()

    def _locate(self, url: str) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
            host = parts.hostname or ""
            host.encode("idna")  # as the resolver will
        except ValueError as error:
            raise _refused(url, str(error)) from error
        if parts.scheme not in ("http", "https") or not host or port == 0:
            raise _refused(url, "it has another form")
        if "?" in url or "#" in url or parts.username is not None:
            raise _refused(url, "it must not hold a query, a fragment or credentials")
        if not url.isascii() or any(c <= " " or c == "\x7f" for c in url):
            raise _refused(url, "it must be printable ASCII without spaces")
        prefix = parts.path.rstrip("/")
        if any(segment in (".", "..") for segment in prefix.split("/")):
            raise _refused(url, "its path must not hold a segment `.` or `..`")
        authority = f"[{host}]" if ":" in host else host
        if port is not None:
            authority = f"{authority}:{port}"
        self.url = f"{parts.scheme}://{authority}{prefix}"
        self.tls = parts.scheme == "https"
        self.host = host
        self.port = port or (443 if self.tls else 80)
        self.authority = authority.encode("ascii")
        self.prefix = prefix.encode("ascii")

    def touched(self) -> None:
        """Of what a policy may see of it, something has changed that makes no new view."""
        for watcher in self.watched_by:
            watcher.add(self)

    @property
    def healthy(self) -> bool:
        """Whether its engine is up."""
        return self.health is Health.UP

    @property
    def available(self) -> bool:
        """Whether it may be given a request: it is up, and its breaker lets one through."""
        return self.health is Health.UP and (
            self.circuit is Circuit.CLOSED
            or (self.circuit is Circuit.HALF_OPEN and not self.probing)
        )

    def __repr__(self) -> str:
        circuit = "" if self.circuit is Circuit.CLOSED else f" breaker={self.circuit.value}"
        return f"<Worker {self.url} {self.health.value}{circuit} load={self.load}>"


def _refused(url: str, why: str) -> ConfigError:
    shown = url.partition("?")[0].rpartition("@")[2] if "@" in url or "?" in url else url
    return ConfigError(
        f"worker URL {shown!r:.300}: {why}; expected http://HOST:PORT or https://HOST:PORT"
    )
