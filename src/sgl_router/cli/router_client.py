"""Calls of a running router's control plane, over HTTP/1.1.

No proxy of the environment is used: it would see the key, and a router takes no changes through
one unless it has a key. No redirect is followed, so that a key reaches the address given only.
"""

import http.client
import re
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson
from pydantic import SecretStr

from sgl_router import __version__
from sgl_router.cli.escapes import escaped
from sgl_router.config.fields import check_key
from sgl_router.config.options import variable_of
from sgl_router.errors import ConfigError, RouterError

KEY_VARIABLE = variable_of("admin_api_key")

MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""More than thousands of workers and plugins take."""

_MAX_KEY_FILE_BYTES = 16 * 1024
_URL = re.compile(r"https?://[!-~]+", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}

_KEY_HINT = f"set the variable {KEY_VARIABLE}, or give --api-key-file FILE"

_HINTS = {
    "unauthorized": f"it is the one of the router's --admin-api-key: {_KEY_HINT}",
    "invalid_api_key": "it is the one of the router's --api-key, as it has no --admin-api-key: "
    + _KEY_HINT,
    "forbidden": "run this on the router's machine, or start it with --admin-api-key and "
    + _KEY_HINT,
    "unknown_url": "it may be an older router, or --router may name something else",
    "plugin_not_found": "sgl-router plugin list shows which there are",
    "plugin_in_use": "first have another policy decide (sgl-router plugin use NAME), or end the "
    "shadow run (sgl-router plugin shadow --stop)",
    "no_shadow": "sgl-router plugin shadow NAME starts one",
}
"""The code of a refusal -> what to do."""


class CallError(RouterError):
    """A call that came to nothing.

    Args:
        lines: what happened, then what goes with it; may quote the router, and is escaped here.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n  ".join(map(escaped, lines)))


@dataclass(frozen=True, slots=True)
class Address:
    """Where a router is: its URL in parts; `path` is before each of its paths, without a last /."""

    url: str
    secure: bool
    host: str
    port: int
    path: str


def parse_address(url: str) -> Address:
    """Raises ValueError, saying what is expected."""
    expected = "expected http://HOST:PORT or https://HOST:PORT, without a user, a ? or a #"
    if not _URL.fullmatch(url):
        raise ValueError(expected)
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError(expected) from None
    if not parts.hostname or "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError(expected)
    return Address(
        url=url,
        secure=parts.scheme == "https",
        host=parts.hostname,
        port=_PORTS[parts.scheme] if port is None else port,
        path=parts.path.rstrip("/"),
    )


def read_key(environment: Mapping[str, str], file: str | None) -> SecretStr | None:
    """The key to send: of the file, else of the variable, else none.

    Raises ConfigError, which does not hold it.
    """
    if file is not None:
        source = f"{file!r}, option --api-key-file"
        try:
            with Path(file).open("rb") as opened:
                text = opened.read(_MAX_KEY_FILE_BYTES).decode("latin-1").strip()
        except OSError as error:
            raise ConfigError(f"cannot read the key: {error.strerror} ({source})") from error
    elif KEY_VARIABLE in environment:
        source, text = f"environment variable {KEY_VARIABLE}", environment[KEY_VARIABLE]
    else:
        return None
    try:
        return check_key(SecretStr(text))
    except ValueError as error:
        raise ConfigError(f"the key cannot be sent: {error} ({source})") from None


@dataclass(frozen=True, slots=True)
class Body:
    """Content of a request, and its media type."""

    content: bytes
    media_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a router answered, with a status of 2xx.

    Attributes:
        text: JSON, as it came.
        value: what that says.
    """

    text: str
    value: Any


class RouterClient:
    """Calls one router; each call has a connection of its own.

    Args:
        key: sent as `Authorization: Bearer KEY`.
        ca_cert: PEM file of the authorities to trust in place of the system's; only for https.
        timeout_secs: the longest that connecting may take, and each pause of the router.

    Raises ConfigError where `ca_cert` cannot be used.
    """

    def __init__(
        self, address: Address, key: SecretStr | None, ca_cert: str | None, timeout_secs: float
    ) -> None:
        self._address = address
        self._key = key
        self._timeout_secs = timeout_secs
        self._tls = _tls_context(ca_cert) if address.secure else None

    def call(self, method: str, path: str, body: Body | None = None) -> Answer:
        """Send one request. Raises CallError where nothing answers, or answers no 2xx and JSON."""
        headers = {"Accept": "application/json", "User-Agent": f"sgl-router/{__version__}"}
        if body is not None:
            headers["Content-Type"] = body.media_type
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        content = None if body is None else body.content
        with self._failures(method), closing(self._connection()) as connection:
            connection.connect()
            response = _exchange(connection, method, self._address.path + path, content, headers)
            status, data = response.status, response.read(MAX_ANSWER_BYTES + 1)
            location = response.headers.get("Location")
        if len(data) > MAX_ANSWER_BYTES:
            raise CallError(
                f"{self._address.url} answered with more than {MAX_ANSWER_BYTES:,} bytes; "
                "is it a router?"
            )
        if not 200 <= status <= 299:
            raise CallError(*self._refusal(status, data, location))
        return self._answer(status, data)

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._tls is None:
            return http.client.HTTPConnection(host, port, timeout=self._timeout_secs)
        return http.client.HTTPSConnection(
            host, port, timeout=self._timeout_secs, context=self._tls
        )

    @contextmanager
    def _failures(self, method: str) -> Iterator[None]:
        """Turns what the standard library raises into CallError."""
        url = self._address.url
        try:
            yield
        except ConnectionRefusedError as error:
            raise CallError(
                f"nothing listens at {url} (connection refused)",
                "start a router with sgl-router launch, or name another one (option --router)",
            ) from error
        except TimeoutError as error:
            lines = [f"{url} did not answer within {self._timeout_secs:g} s (option --timeout)"]
            if method != "GET":
                lines.append("what was asked for may happen yet: see sgl-router plugin list")
            raise CallError(*lines) from error
        except ssl.SSLCertVerificationError as error:
            raise CallError(
                f"the certificate of {url} is not trusted: {error.verify_message}",
                "give the PEM file of its authority (option --ca-cert)",
            ) from error
        except ssl.SSLError as error:
            raise CallError(f"{url} does not speak TLS: {error.reason or error}") from error
        except http.client.RemoteDisconnected as error:
            raise CallError(f"{url} closed the connection without an answer") from error
        except http.client.HTTPException as error:
            what = f"{type(error).__name__} {error}"
            raise CallError(f"{url} answered what is not HTTP: {what:.200}") from error
        except UnicodeError as error:
            raise CallError(f"cannot reach {url}: its host is no name of a host") from error
        except OSError as error:
            raise CallError(f"cannot reach {url}: {error.strerror or error}") from error

    def _refusal(self, status: int, data: bytes, location: str | None) -> list[str]:
        """Why, with each reason on a line of its own, and what to do."""
        if 300 <= status <= 399:
            where = f" to {location:.500}" if location else ""
            return [f"{self._address.url} redirects{where} ({status}); give that as --router"]
        code, message, reasons = _read_refusal(data)
        if not message:
            return [f"{self._address.url} answered {status} without a reason; is it a router?"]
        first = "the plugin is refused" if reasons else message
        lines = [f"{first} ({status} {code})", *reasons]
        if status == 401 and self._key is not None:
            lines.append("the key that was sent is not the router's")
        if code in _HINTS:
            lines.append(_HINTS[code])
        return lines

    def _answer(self, status: int, data: bytes) -> Answer:
        try:
            return Answer(data.decode("utf-8"), orjson.loads(data))
        except ValueError:
            raise CallError(
                f"{self._address.url} answered {status} with what is not JSON; is it a router?"
            ) from None


def _exchange(
    connection: http.client.HTTPConnection,
    method: str,
    path: str,
    content: bytes | None,
    headers: Mapping[str, str],
) -> http.client.HTTPResponse:
    """Send a request and read the head of its answer."""
    try:
        connection.request(method, path, content, dict(headers))
    except (BrokenPipeError, ConnectionResetError):
        # A refusal may come before all of a module is sent, and the connection be closed
        # (RFC 9112, section 9.5); where there is none, reading fails too.
        return connection.getresponse()
    return connection.getresponse()


def _tls_context(ca_cert: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca_cert)
    except ssl.SSLError as error:
        raise ConfigError(
            f"{ca_cert!r} is no PEM file of certificates (option --ca-cert)"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"cannot read {ca_cert!r}: {error.strerror} (option --ca-cert)"
        ) from error


def _read_refusal(data: bytes) -> tuple[str, str, Sequence[str]]:
    """Code, message and reasons of an error's body, each with its own code; empty without them."""
    try:
        body = orjson.loads(data)
    except ValueError:
        return "", "", ()
    error = body.get("error") if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return "", "", ()
    reasons, codes = (
        found if isinstance(found, list) else [] for found in map(body.get, ("reasons", "codes"))
    )
    return (
        str(error.get("code") or ""),
        str(error.get("message") or ""),
        [
            f"{reason} [{code}]" if code else str(reason)
            for reason, code in zip_longest(reasons, codes[: len(reasons)])
        ],
    )
