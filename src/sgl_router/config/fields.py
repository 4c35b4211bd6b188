"""The kinds of values that options have, and what is refused of each."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    SecretStr,
)

_PORT = re.compile(r"[0-9]+|none", re.IGNORECASE)
VISIBLE_ASCII = r"^[!-~]+$"
MAX_KEY_CHARACTERS = 4096
_URL = re.compile(r"https?://\S+", re.IGNORECASE)
_PREFILL_FORM = "expected URL, or URL and its bootstrap port from 1 to 65535 or none"

STRICT = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)
"""Of every model here; input is hidden because it may hold a key."""


class Section(BaseModel):
    """Options of one topic; its subclasses are what RouterConfig is made of."""

    model_config = STRICT
    title: ClassVar[str]


def _none_word(value: object) -> object:
    """How a flag or a variable says that there is no value."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def _worker_url(url: str) -> str:
    if not _URL.fullmatch(url):
        raise ValueError("expected http://HOST:PORT or https://HOST:PORT")
    return url


def _matching(pattern: str, expected: str) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"expected {expected}")
        return text

    return AfterValidator(check)


def _limit(number: int) -> int:
    if number < 1 and number != -1:
        raise ValueError("expected a whole number from 1, or -1 for no limit")
    return number


def check_key(key: SecretStr) -> SecretStr:
    """A key as it is; raises ValueError where it cannot be sent as one."""
    # RFC 6750, section 2.1: a bearer token has no spaces; a line break would end the header.
    text = key.get_secret_value()
    if not re.fullmatch(VISIBLE_ASCII, text) or not len(text) <= MAX_KEY_CHARACTERS:
        raise ValueError(
            f"expected 1 to {MAX_KEY_CHARACTERS:,} visible ASCII characters, without spaces"
        )
    return key


def _rooted(path: object) -> object:
    """A path is meant as one without its first slash too; a whole URL is not."""
    relative = isinstance(path, str) and path and path[0] != "/" and "://" not in path
    return f"/{path}" if relative else path


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
OptionalSeconds = Annotated[Seconds | None, BeforeValidator(_none_word)]
Milliseconds = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]
CountOrUnlimited = Annotated[int, AfterValidator(_limit)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Factor = Annotated[float, Field(ge=1, allow_inf_nan=False)]
Port = Annotated[int, Field(ge=0, le=65535)]
OptionalPort = Annotated[Port | None, BeforeValidator(_none_word)]
Host = Annotated[str, Field(min_length=1)]
FilePath = Annotated[str, Field(min_length=1)]
UrlPath = Annotated[
    str,
    BeforeValidator(_rooted),
    _matching(r"/[!-~]*", "a path: / and visible ASCII characters"),
]
HeaderName = Annotated[
    str, _matching(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", "a header's name (RFC 9110, section 5.6.2)")
]
Origin = Annotated[
    str,
    _matching(
        r"\*|[a-z][a-z0-9+.-]*://[a-z0-9._:\[\]-]+",
        "* or an origin as browsers send it: https://HOST or https://HOST:PORT in lower case, "
        "without a path or a / at its end",
    ),
]
WorkerUrl = Annotated[str, AfterValidator(_worker_url)]
Secret = Annotated[SecretStr, AfterValidator(check_key)]


class WorkerSettings(BaseModel):
    """One engine, with what a URL does not say; names and defaults are those of POST /workers.

    Attributes:
        url: http://HOST:PORT or https.
        worker_type: which half of a request it does.
        model_id: the one model that it serves; None: it may be asked for any.
        labels, priority, cost: kept for the operator, shown in listings and to policies.
        weight: its share beside others, for policies that weigh.
        api_key: sent to it in place of the client's `Authorization`.
        bootstrap_port: of a prefill engine's bootstrap server (SGLang).
    """

    model_config = STRICT

    url: WorkerUrl
    worker_type: Literal["regular", "prefill", "decode"] = "regular"
    model_id: Annotated[str, Field(min_length=1)] | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    priority: Annotated[int, Field(ge=0)] = 50
    cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    api_key: Secret | None = None
    bootstrap_port: Annotated[int, Field(ge=1, le=65535)] | None = None


class PrefillEngine(NamedTuple):
    """A prefill engine's URL, and the port of its bootstrap server where it has one."""

    url: str
    bootstrap_port: int | None = None


def parse_prefill(value: object) -> PrefillEngine:
    """One prefill engine: `"URL"`, `"URL PORT"`, `[URL, PORT]`, or a mapping of the two names.

    Raises ValueError, saying what is accepted.
    """
    if isinstance(value, Mapping):
        if not {"url"} <= value.keys() <= {"url", "bootstrap_port"}:
            raise ValueError("expected a mapping with url and perhaps bootstrap_port")
        return _prefill(value["url"], value.get("bootstrap_port"))
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not 1 <= len(words) <= 2:
        raise ValueError(_PREFILL_FORM)
    return _prefill(*words)


def _prefill(url: object, port: object = None) -> PrefillEngine:
    if not isinstance(url, str):
        raise ValueError(_PREFILL_FORM)
    _worker_url(url)
    if isinstance(port, str) and _PORT.fullmatch(port):
        port = None if port.lower() == "none" else int(port)
    if port is None:
        return PrefillEngine(url)
    if not isinstance(port, int) or isinstance(port, bool) or not 1 <= port <= 65535:
        raise ValueError(_PREFILL_FORM)
    return PrefillEngine(url, port)


def group_prefill(words: list[str]) -> list[str]:
    """Words of an environment variable as engines: a port, or `none`, belongs to the URL before."""
    engines: list[str] = []
    for word in words:
        if engines and _PORT.fullmatch(word):
            engines[-1] += f" {word}"
        else:
            engines.append(word)
    return engines


Prefill = Annotated[PrefillEngine, PlainValidator(parse_prefill)]


def check_plugin_config(value: object) -> Any:
    """Settings of plugins by name, the path of a file of them, or None; returned as they are.

    Raises ValueError where it is anything else.
    """
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, Mapping):
        raise ValueError("expected the path of a YAML file, or a mapping of plugins' names")
    for name, settings in value.items():
        if not isinstance(settings, Mapping) or not all(isinstance(k, str) for k in settings):
            raise ValueError(
                f"the settings of {name!r:.80} are no mapping of names such as config or "
                "max_execution_time_ms"
            )
    if not all(isinstance(name, str) for name in value):
        raise ValueError("expected names of plugins as keys; put numbers in quotation marks")
    return value


PluginConfig = Annotated[
    dict[str, dict[str, Any]] | str | None, BeforeValidator(check_plugin_config)
]
