"""Every exception that crosses a module of sgl-router.

RouterError
├── ConfigError             a setting that cannot be used
├── PluginRefused           a plugin that is not loaded, with every reason found
├── StoreError              the store of uploaded plugins fails (wasm/stored.py)
├── CallError               a router that a command was for did not do it (cli/router_client.py)
├── DecisionError           a policy that failed to choose a worker; the fallback policy takes over
├── ProtocolError           bytes from a peer that are not HTTP/1.1 as this router accepts it
├── EngineError             an engine that could not be reached or broke off
└── RequestError            a request that is answered by the router itself, with an HTTP status
"""

from collections.abc import Sequence
from typing import Literal

FailureKind = Literal[
    "trap",
    "timeout",
    "out_of_memory",
    "bad_output",
    "out_of_range",
    "unhealthy_pick",
    "plugin_error",
    "quarantined",
]
"""How a decision fails; `quarantined`: the plugin was not asked."""


class RouterError(Exception):
    """The root of the tree."""


class ConfigError(RouterError):
    """A setting that cannot be used.

    The message names the option, but for a URL that `Worker` or `WorkerRegistry` refuses: who was
    given it adds where.
    """


class PluginRefused(RouterError):
    """A plugin was not loaded.

    Attributes:
        plugin: the plugin's name as given.
        reasons: every reason found, each a sentence with the value found and the limit.
    """

    def __init__(self, plugin: str, reasons: Sequence[str]) -> None:
        assert reasons, "a refusal says why"
        self.plugin = plugin
        self.reasons = tuple(reasons)
        shown = [*reasons[:20], f"and {len(reasons) - 20} more"] if len(reasons) > 20 else reasons
        super().__init__(f"plugin {plugin!r} refused: " + "; ".join(shown))


class DecisionError(RouterError):
    """A policy failed to choose a worker.

    Attributes:
        policy: the policy's name.
        kind: one of `FailureKind`.
        detail: one line for the log, already cut and escaped where it came from a plugin.
    """

    def __init__(self, policy: str, kind: FailureKind, detail: str) -> None:
        self.policy = policy
        self.kind: FailureKind = kind
        self.detail = detail
        super().__init__(f"policy {policy!r}: {kind}: {detail}")


class ProtocolError(RouterError):
    """Bytes that are not HTTP/1.1.

    Attributes:
        status: what a client that sent them is answered (RFC 9110, section 15.5).
    """

    def __init__(self, message: str, *, status: int = 400) -> None:
        self.status = status
        super().__init__(message)


class EngineError(RouterError):
    """An engine could not be reached, answered nonsense or broke off.

    Attributes:
        local: whether it is this machine that lacks something, which says nothing of the engine.
    """

    def __init__(self, message: str, *, local: bool = False) -> None:
        self.local = local
        super().__init__(message)


class RequestError(RouterError):
    """A request that the router answers itself.

    Attributes:
        status: the HTTP status.
        code: the machine-readable code in the body.
        retry_after_secs: after which the client may try again, or None.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_secs: int | None = None
    ) -> None:
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_secs = retry_after_secs
        super().__init__(message)

    @property
    def type(self) -> str:
        """The OpenAI API's coarse class of error."""
        words = {
            401: "authentication_error",
            403: "permission_error",
            404: "not_found_error",
            429: "rate_limit_error",
        }
        if self.status in words:
            return words[self.status]
        return "invalid_request_error" if self.status < 500 else "server_error"
