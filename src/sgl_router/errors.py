"""Every exception that crosses a module of sgl-router.

RouterError
├── ConfigError             a setting that cannot be used
├── PluginRefused           a plugin that is not loaded, with every reason found
├── BuildError              a plugin that could not be built
├── StoreError              the store of uploaded plugins fails (wasm/stored.py)
├── CallError               a router that a command was for did not do it (cli/router_client.py)
├── DecisionError           a policy that failed to choose a worker; the fallback policy takes over
├── ProtocolError           bytes from a peer that are not HTTP/1.1 as this router accepts it
├── EngineError             an engine that could not be reached or broke off
└── RequestError            a request that is answered by the router itself, with an HTTP status
"""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

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


class CodedText(Protocol):
    """A sentence, and the code of its kind (`wasm/refusals.py` has all that there are)."""

    @property
    def code(self) -> str: ...

    @property
    def text(self) -> str: ...


class PluginRefused(RouterError):
    """A plugin was not loaded.

    Attributes:
        plugin: the plugin's name as given.
        reasons: every reason found, each a sentence with the value found and the limit.
        codes: of each reason, what kind it is.
    """

    def __init__(self, plugin: str, reasons: Sequence[CodedText]) -> None:
        assert reasons, "a refusal says why"
        self.plugin = plugin
        self.reasons = tuple(reason.text for reason in reasons)
        self.codes = tuple(reason.code for reason in reasons)
        super().__init__(f"plugin {plugin!r} refused: {self.shown()}")

    def shown(self) -> str:
        """The reasons with their codes in one line, of more than 20 the first."""
        first = list(zip(self.reasons[:20], self.codes, strict=False))
        more = [f"and {len(self.reasons) - 20} more"] if len(self.reasons) > 20 else []
        return "; ".join([*(f"{text} [{code}]" for text, code in first), *more])


class BuildError(RouterError):
    """A plugin was not built: a tool is missing, or it failed.

    Attributes:
        tool: what was to build it.
        command: what was run; empty where the tool is missing.
        output: the end of what it printed, safe for a terminal, its lines kept.
    """

    def __init__(
        self, message: str, *, tool: str, command: Sequence[str] = (), output: str = ""
    ) -> None:
        self.tool = tool
        self.command = tuple(command)
        self.output = output
        run = f"(the command was: {shlex.join(command)})" if command else ""
        super().__init__("\n".join(filter(None, [message, output, run])))


@dataclass(frozen=True, slots=True)
class LastWords:
    """What a plugin that failed has left for its author; all of it is cut and escaped.

    Attributes:
        panic: its own text of what went wrong, one line, or None.
        output: the end of what it printed during the call, in lines, or None.
        backtrace: the functions that were under way, innermost first.
    """

    panic: str | None = None
    output: str | None = None
    backtrace: tuple[str, ...] = ()


_SILENT = LastWords()


class DecisionError(RouterError):
    """A policy failed to choose a worker.

    Attributes:
        policy: the policy's name.
        kind: one of `FailureKind`.
        detail: one line for the log, already cut and escaped where it came from a plugin.
        words: what a plugin has said of it besides.
    """

    def __init__(
        self, policy: str, kind: FailureKind, detail: str, words: LastWords = _SILENT
    ) -> None:
        self.policy = policy
        self.kind: FailureKind = kind
        self.detail = detail
        self.words = words
        super().__init__(f"policy {policy!r}: {self.why}")

    @property
    def why(self) -> str:
        """In one line: its kind, the cause, and what the plugin said of it."""
        said = "" if self.words.panic is None else f"; it said: {self.words.panic}"
        return f"{self.kind}: {self.detail}{said}"

    @property
    def where(self) -> str:
        """In the same line, after that: the functions that were under way, innermost first."""
        backtrace = self.words.backtrace
        return f"; in {' <- '.join(backtrace)}" if backtrace else ""


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
