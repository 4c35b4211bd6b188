"""The shapes of what is sent and answered; `/openapi.json` is made of them."""

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)

from sgl_router.config.fields import MAX_KEY_CHARACTERS, VISIBLE_ASCII, check_key
from sgl_router.core.worker import Role

MAX_LABELS = 64
_MAX_NUMBER = 1e9  # so that sums of them stay finite


def whole(value: object) -> object:
    """JSON Schema's integers are all numbers without a fraction, 1.0 among them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


WorkerUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=2048,
        description="http://HOST:PORT or https://HOST:PORT, with a path where the engine has one",
        json_schema_extra={"format": "uri"},
    ),
]
_Label = Annotated[str, Field(min_length=1, max_length=128)]
_LabelValue = Annotated[str, Field(max_length=1024)]
_Priority = Annotated[
    int,
    Field(ge=0, le=2**32 - 1, description="shown in listings; 50 if absent"),
    BeforeValidator(whole),
]
_Port = Annotated[int, Field(ge=1, le=65535), BeforeValidator(whole)]
_Cost = Annotated[
    float,
    Field(ge=0, le=_MAX_NUMBER, allow_inf_nan=False, description="shown in listings; 1 if absent"),
]
_Weight = Annotated[
    float,
    Field(
        ge=0,
        le=_MAX_NUMBER,
        allow_inf_nan=False,
        description="share beside other workers, for policies that weigh; 1 if absent",
    ),
]
_ApiKey = Annotated[
    SecretStr,
    AfterValidator(check_key),
    Field(
        description="sent to the engine in place of the client's Authorization; never shown",
        json_schema_extra={
            "pattern": VISIBLE_ASCII,
            "minLength": 1,
            "maxLength": MAX_KEY_CHARACTERS,
        },
    ),
]


class _Body(BaseModel):
    """What a client sends.

    Keys that are not known are ignored, as the peers do, whose clients send many more; the answer
    names them.
    """

    model_config = ConfigDict(strict=True, extra="allow", hide_input_in_errors=True)

    @property
    def unknown(self) -> list[str]:
        return list(self.model_extra or {})


class WorkerSpec(_Body):
    """An engine to add. A key that is null is as one that is absent."""

    url: WorkerUrl
    worker_type: Role | None = Field(default=None, description="regular if absent")
    model_id: Annotated[str, Field(min_length=1, max_length=256)] | None = Field(
        default=None,
        description="the one model that it serves; absent or unknown: it is asked for any",
    )
    labels: Annotated[dict[_Label, _LabelValue], Field(max_length=MAX_LABELS)] | None = None
    priority: _Priority | None = None
    cost: _Cost | None = None
    weight: _Weight | None = None
    api_key: _ApiKey | None = None
    bootstrap_port: _Port | None = Field(
        default=None, description="of a prefill engine's bootstrap server (SGLang)"
    )


class WorkerUpdate(_Body):
    """What is to change of a worker. A key that is null or absent stays as it is."""

    labels: Annotated[dict[_Label, _LabelValue | None], Field(max_length=MAX_LABELS)] | None = (
        Field(default=None, description="added to those there are; null takes a label away")
    )
    priority: _Priority | None = None
    cost: _Cost | None = None
    weight: _Weight | None = None
    api_key: _ApiKey | None = Field(default=None, description="used from the next request on")


@dataclass(slots=True)  # not frozen: that doubles what a listing of a thousand costs
class WorkerInfo:
    """A worker, as it is listed."""

    id: str
    url: str
    model_id: Annotated[str, Field(description="unknown where it may be asked for any")]
    worker_type: Role
    is_healthy: Annotated[bool, Field(description="whether its engine is up")]
    status: Literal["pending", "ready", "not_ready", "draining"]
    circuit: Annotated[
        Literal["closed", "open", "half_open"],
        Field(description="its breaker; open: it is given no requests though it may be healthy"),
    ]
    load: Annotated[int, Field(description="requests in flight on it through this router")]
    priority: int
    cost: float
    weight: float
    labels: dict[str, str]
    bootstrap_port: int | None


@dataclass(frozen=True, slots=True)
class WorkerStats:
    """How many workers there are of each type."""

    prefill_count: int
    decode_count: int
    regular_count: int


@dataclass(frozen=True, slots=True)
class WorkerList:
    """The whole pool."""

    workers: list[WorkerInfo]
    total: int
    stats: WorkerStats


@dataclass(frozen=True, slots=True)
class WorkerAdded:
    """A worker was added."""

    status: Literal["accepted"]
    worker_id: str
    url: Annotated[str, Field(description="as it is listed")]
    location: Annotated[str, Field(description="the path of the worker, as in Location")]
    message: str


@dataclass(frozen=True, slots=True)
class WorkerChanged:
    """A worker was changed, or is being removed."""

    status: Literal["accepted"]
    worker_id: str
    message: str


@dataclass(frozen=True, slots=True)
class WorkerUrls:
    """What older clients get for a listing."""

    urls: list[str]


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's load, by two accounts."""

    worker: Annotated[str, Field(description="its URL")]
    load: Annotated[
        int, Field(description="tokens, as an SGLang engine says at /get_load; else -1")
    ]
    in_flight: Annotated[int, Field(description="requests on it through this router")]


@dataclass(frozen=True, slots=True)
class Loads:
    """The loads of all workers."""

    workers: list[WorkerLoad]


@dataclass(frozen=True, slots=True)
class Flushed:
    """All engines have flushed their caches."""

    status: Literal["success"]
    message: str
    workers_flushed: int
    total_http_workers: int
    total_workers: int


@dataclass(frozen=True, slots=True)
class FlushFailure:
    """An engine that did not."""

    worker: str
    error: str


@dataclass(frozen=True, slots=True)
class PartlyFlushed:
    """Some engines have flushed their caches, and some have not."""

    status: Literal["partial_success"]
    message: str
    workers_flushed: int
    total_http_workers: int
    total_workers: int
    successful: list[str]
    failed: list[FlushFailure]


class AbortSpec(BaseModel):
    """Which requests to stop, as SGLang is told; other keys are passed on to the engines."""

    model_config = ConfigDict(
        strict=True,
        extra="allow",
        hide_input_in_errors=True,
        json_schema_extra={
            "anyOf": [
                {"required": ["rid"], "properties": {"rid": {"type": "string", "minLength": 1}}},
                {"required": ["abort_all"], "properties": {"abort_all": {"const": True}}},
            ]
        },
    )

    rid: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="the request's id: its rid, or the one in its x-request-id"
    )
    abort_all: bool | None = Field(
        default=None,
        description="stop all requests on all engines, whatever rid says: a change of the "
        "control plane",
    )

    @model_validator(mode="after")
    def _names_something(self) -> "AbortSpec":
        if not self.rid and not self.abort_all:
            raise ValueError("expected rid, or abort_all: true")
        return self


@dataclass(frozen=True, slots=True)
class Aborted:
    """Engines have been told to stop requests; one that does not know an id ignores it."""

    status: Annotated[
        Literal["success", "partial_success"],
        Field(description="partial_success: not all engines that were asked took it"),
    ]
    message: str
    workers: Annotated[list[str], Field(description="the URLs of those that took it")]


@dataclass(frozen=True, slots=True)
class Ready:
    """A request would find a worker."""

    status: Literal["ready"]
    healthy_workers: int
    total_workers: int


@dataclass(frozen=True, slots=True)
class NotReady:
    """A request would find none, or the router is about to stop."""

    status: Literal["not ready"]
    reason: Literal["insufficient healthy workers", "draining"]


class Model(BaseModel):
    """One model, as the engine describes it."""

    model_config = ConfigDict(extra="allow")

    id: str


class ModelList(BaseModel):
    """The models of all healthy workers."""

    object: Literal["list"]
    data: list[Model]


class ErrorObject(BaseModel):
    """What went wrong; `code` is for programs, `message` for people."""

    type: str
    code: str
    message: str
    param: None


class ErrorBody(BaseModel):
    """An error, as the OpenAI API words it."""

    error: ErrorObject


WorkersErrorCode = Literal["BAD_REQUEST", "WORKER_NOT_FOUND", "WORKER_ALREADY_EXISTS"]


class WorkersErrorBody(BaseModel):
    """An error of `/workers`, as the peers word it."""

    error: str
    code: WorkersErrorCode
