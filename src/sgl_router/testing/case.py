"""One decision to try a policy with, from an input of the JSON ABI.

What the input says becomes real workers in a registry and a real request, so that whatever policy
is asked, plugin or built in, sees what a router would show it.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from sgl_router.core.prefix_index import PrefixMatch
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import CHARACTERS_PER_TOKEN, RequestView
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.errors import ConfigError

MAX_I32 = 2**31 - 1
"""The most that the table ABI says of a load; so it is the most that a case may."""

MAX_ENTROPY = 2**53 - 1
MAX_WORKERS = 10_000
"""Of an input; making a case of more would take minutes."""

_MAX_U64 = 2**64 - 1
_HEX = re.compile("[0-9A-Fa-f]+")
_METRICS = ("queued", "running", "kv_usage", "metrics_age_ms")
_OF_WORKER = ("pending_tokens", "prefix_match", "id", "weight", "labels", "ttft_ms")
_OF_REQUEST = ("model", "session", "text_bytes", "prompt_tokens", "id", "path", "stream", "attempt")
_OF_INPUT = ("workers", "request_text", "config", "state", "request", "now_ms", "entropy")


@dataclass(frozen=True, slots=True)
class DecisionCase:
    """One decision.

    Attributes:
        workers: what it is taken about.
        request: what it is taken for, with entropy and time.
        state: what the plugin has returned before.
        config: the plugin's configuration; None: that of its settings.
        given: the input that it was made from; None: it was made of workers and a request.
        unsaid: parts of the input that no router says, such as keys that there are not.
        malformed: parts of it that no router can say, such as a load that is no number. The
            workers and the request have something else in their place.
    """

    workers: WorkerView
    request: RequestView
    state: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    given: Mapping[str, Any] | None = None
    unsaid: Sequence[str] = ()
    malformed: Sequence[str] = ()

    @classmethod
    def from_input(cls, given: Mapping[str, Any]) -> "DecisionCase":
        """The case that an input of the JSON ABI describes, whatever it holds."""
        top = _Fields(given, "")
        top.knows(_OF_INPUT)
        request = _request(top)
        raw = given.get("workers", [])
        if not isinstance(raw, list):
            top.malformed.append("workers")
            raw = []
        registry = WorkerRegistry()
        matches: dict[Worker, int] = {}
        for index, one in enumerate(raw):
            worker, matched = _worker(top, index, one, request.now_ms)
            try:
                registry.add(worker)
            except ConfigError:  # a URL that stands twice
                top.malformed.append(f"workers[{index}].url")
                worker = _with_health(Worker(_made_up(index)), worker.health)
                registry.add(worker)
            matches[worker] = matched
        request.prefix = TokenMatch(matches)
        return cls(
            workers=registry.view(),
            request=request,
            state=top.mapping("state") or {},
            config=top.mapping("config"),
            given=given,
            unsaid=tuple(top.unsaid),
            malformed=tuple(top.malformed),
        )

    @property
    def exact(self) -> bool:
        """Whether workers and request say all that the input does."""
        return not self.unsaid and not self.malformed


class CaseRequest(RequestView):
    """A request whose text, model and session are given, and not read from a body."""

    def __init__(
        self,
        id: str = "case",
        path: str = "/v1/chat/completions",
        *,
        text: str | None = None,
        model: str | None = None,
        session: str | None = None,
        stream: bool = False,
        prompt_tokens: int | None = None,
    ) -> None:
        super().__init__(id, path)
        self._text = text or ""
        self._model = model
        self._stream = stream
        self._tokens = prompt_tokens
        self.routing_key = session

    @property
    def model(self) -> str | None:
        return self._model

    @property
    def stream(self) -> bool:
        return self._stream

    @property
    def session(self) -> str | None:
        return self.routing_key

    @property
    def prompt_tokens(self) -> int:
        return super().prompt_tokens if self._tokens is None else self._tokens


class TokenMatch(PrefixMatch):
    """How much of a prompt each worker holds, as it is given.

    Args:
        tokens: of each worker; 0 where it is not named.
    """

    __slots__ = ("_held",)

    def __init__(self, tokens: Mapping[Worker, int]) -> None:
        super().__init__([], {}, set())
        self._held = {w: held * CHARACTERS_PER_TOKEN for w, held in tokens.items() if held}
        self.characters = max(self._held.values(), default=0)

    def of(self, worker: Worker) -> int:
        return self._held.get(worker, 0)


class _Fields:
    """An object of the input, read key by key; what is of no use is noted."""

    def __init__(self, given: object, where: str, notes: "_Fields | None" = None) -> None:
        self._where = where
        self.unsaid: list[str] = [] if notes is None else notes.unsaid
        self.malformed: list[str] = [] if notes is None else notes.malformed
        self._given: Mapping[str, Any] = {}
        if isinstance(given, Mapping):
            self._given = given
        else:
            self.malformed.append(where.rstrip("."))

    def knows(self, keys: Sequence[str]) -> None:
        """All other keys are noted."""
        self.unsaid += [f"{self._where}{key}" for key in self._given if key not in keys]

    def get(self, key: str) -> Any:
        return self._given.get(key)

    def refuse(self, key: str) -> None:
        self.malformed.append(f"{self._where}{key}")

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is None or isinstance(value, str):
            if value == "":
                self.unsaid.append(f"{self._where}{key}")  # a router says null
            return value or None
        self.refuse(key)
        return None

    def whole(self, key: str, most: int, default: int = 0) -> int:
        value = self.get(key)
        if value is None:
            return default
        if type(value) is int and 0 <= value <= most:
            return value
        self.refuse(key)
        return default

    def number(self, key: str) -> float | None:
        value = self.get(key)
        if value is None or (type(value) in (int, float) and value >= 0):
            return None if value is None else float(value)
        self.refuse(key)
        return None

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.refuse(key)
        return False

    def mapping(self, key: str) -> Mapping[str, Any] | None:
        value = self.get(key)
        if value is None or isinstance(value, dict):
            return value
        self.refuse(key)
        return None


def _request(top: _Fields) -> CaseRequest:
    asked = _Fields(top.get("request") or {}, "request.", top)
    asked.knows(_OF_REQUEST)
    text, size = top.text("request_text"), asked.whole("text_bytes", _MAX_U64)
    if text is None and size <= MAX_I32:
        text = "x" * size  # the plugin does not read it, but how long it is
    if size and size != len((text or "").encode("utf-8", "replace")):
        asked.unsaid.append("request.text_bytes")
    request = CaseRequest(
        asked.text("id") or "case",
        asked.text("path") or "/v1/chat/completions",
        text=text,
        model=asked.text("model"),
        session=asked.text("session"),
        stream=asked.flag("stream"),
        prompt_tokens=asked.whole("prompt_tokens", _MAX_U64),
    )
    request.attempt = asked.whole("attempt", MAX_I32)
    request.entropy = top.whole("entropy", MAX_ENTROPY)
    request.now_ms = top.whole("now_ms", 2**63 - 1)
    return request


def _worker(top: _Fields, index: int, given: object, now_ms: int) -> tuple[Worker, int]:
    """A worker, and the tokens of the prompt that it holds."""
    said = _Fields(given, f"workers[{index}].", top)
    said.knows(("url", "healthy", "load", *_METRICS, *_OF_WORKER))
    url = said.text("url") or ""
    weight = said.number("weight")
    labels = said.mapping("labels") or {}
    if not all(isinstance(label, str) for label in labels.values()):
        said.refuse("labels")
        labels = {}
    try:
        worker = Worker(url, weight=1.0 if weight is None else weight, labels=labels)
    except ConfigError:
        worker = Worker(_made_up(index), labels=labels)
    if worker.url != url and isinstance(given, Mapping):
        said.refuse("url")
    _with_health(worker, Health.UP if said.flag("healthy") else Health.DOWN)
    worker.load = said.whole("load", MAX_I32)
    worker.pending_tokens = said.whole("pending_tokens", _MAX_U64)
    worker.ttft_ms = said.number("ttft_ms")
    if said.get("queued") is not None or said.get("running") is not None:
        worker.metrics = EngineMetrics(
            said.whole("queued", MAX_I32),
            said.whole("running", MAX_I32),
            said.number("kv_usage"),
            now_ms - said.whole("metrics_age_ms", now_ms),
        )
    if (id := said.text("id")) is not None:
        if _HEX.fullmatch(id[:8]):  # the table ABI has its first digits as a number
            worker.id = id
        else:
            said.refuse("id")
    return worker, said.whole("prefix_match", _MAX_U64 // CHARACTERS_PER_TOKEN)


def _with_health(worker: Worker, health: Health) -> Worker:
    worker.health = health
    return worker


def _made_up(index: int) -> str:
    return f"http://malformed.invalid:{index + 1}"


def load_input(text: bytes | str) -> Mapping[str, Any]:
    """An input of the JSON ABI, from its text. Raises ConfigError."""
    try:
        given = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ConfigError(f"the input is not JSON: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"the input is a {type(given).__name__}; expected an object")
    if why := too_much(given):
        raise ConfigError(f"the input {why}")
    return given


def too_much(given: Mapping[str, Any]) -> str | None:
    """Why no plugin is asked about an input, whatever it says; or None."""
    workers = given.get("workers")
    if isinstance(workers, list) and len(workers) > MAX_WORKERS:
        return f"has {len(workers):,} workers; at most {MAX_WORKERS:,} are allowed"
    try:
        orjson.dumps(given)
    except orjson.JSONEncodeError as error:
        return f"cannot be given as JSON: {error}"
    return None
