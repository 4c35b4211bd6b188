"""Options of the router as a server: where it listens, to whom, how long, how much at a time."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from sgl_router.config.fields import (
    Count,
    CountOrUnlimited,
    CountOrZero,
    FilePath,
    HeaderName,
    Host,
    OptionalPort,
    OptionalSeconds,
    Origin,
    Port,
    Seconds,
    Secret,
    Section,
)


class ListenOptions(Section):
    """Where clients come to."""

    title: ClassVar[str] = "Listening"

    host: Host = Field(default="0.0.0.0", description="address to listen on")
    port: Port = Field(default=30000, description="port to listen on; 0: any free one")
    cors_allowed_origins: tuple[Origin, ...] = Field(
        default=(),
        description="origins whose pages may call the router from a browser, such as "
        "https://chat.example.com, or *",
    )


class RequestOptions(Section):
    """What a request may be."""

    title: ClassVar[str] = "Requests"

    max_payload_size: Count = Field(
        default=512 * 1024 * 1024, description="largest request body, in bytes"
    )
    request_id_headers: tuple[HeaderName, ...] = Field(
        default=("x-request-id", "x-correlation-id", "x-trace-id", "request-id"),
        description="request headers that may hold the request's id; the first present counts",
    )


class TimeOptions(Section):
    """How long anything may take, in seconds."""

    title: ClassVar[str] = "Time limits, in seconds"

    request_timeout_secs: Seconds = Field(
        default=1800.0, description="from a request's head to the end of its answer"
    )
    connect_timeout_secs: Seconds = Field(
        default=5.0, description="for a connection to an engine to be made"
    )
    first_byte_timeout_secs: OptionalSeconds = Field(
        default=None,
        description="for an engine to begin its answer; none: as long as the request may take",
    )
    stream_idle_timeout_secs: OptionalSeconds = Field(
        default=300.0,
        description="longest pause of an engine within its answer, or of a client in taking it; "
        "none: as long as the request may take",
    )
    client_head_timeout_secs: Seconds = Field(
        default=30.0, description="for a client to send the head of a request"
    )
    client_body_timeout_secs: Seconds = Field(
        default=60.0, description="longest pause of a client within the body of its request"
    )
    keep_alive_timeout_secs: Seconds = Field(
        default=75.0, description="how long a client's connection is kept between two requests"
    )
    shutdown_grace_period_secs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=180.0, description="how long requests under way may take to end after SIGTERM"
    )


class AdmissionOptions(Section):
    """How much at a time."""

    title: ClassVar[str] = "Requests at a time"

    max_concurrent_requests: CountOrUnlimited = Field(
        default=-1,
        description="requests under way at a time, each counted until its answer has ended; "
        "-1: no limit",
    )
    queue_size: CountOrZero = Field(
        default=100,
        description="requests that may wait where --max-concurrent-requests are under way; more "
        "are answered 429",
    )
    queue_timeout_secs: Seconds = Field(
        default=60.0, description="how long a request may wait, in seconds; then it is answered 503"
    )


class AccessOptions(Section):
    """Who may do what."""

    title: ClassVar[str] = "Keys and control plane"

    api_key: Secret | None = Field(
        default=None,
        description="key that clients must send as Authorization: Bearer KEY; an engine's own key "
        "stands under the key workers. A flag can be read in the process list by everybody on the "
        "machine: set the variable SGL_ROUTER_API_KEY, or use the file",
    )
    admin_api_key: Secret | None = Field(
        default=None,
        description="key for the control plane (adding and removing workers); without it "
        "changes are accepted from this machine only. A flag can be read in the process list: set "
        "the variable SGL_ROUTER_ADMIN_API_KEY, or use the file",
    )
    admin_port: OptionalPort = Field(
        default=None,
        description="port for the control plane, besides --port; 0: any free one; none: --port "
        "alone",
    )
    admin_host: Host = Field(default="127.0.0.1", description="address for --admin-port")


class TlsOptions(Section):
    """Certificates."""

    title: ClassVar[str] = "TLS"

    tls_cert_path: FilePath | None = Field(
        default=None,
        description="PEM file with the router's certificate and those between it and the "
        "authority; clients then come over https",
    )
    tls_key_path: FilePath | None = Field(
        default=None, description="PEM file with the private key of --tls-cert-path"
    )
    ca_cert_paths: tuple[FilePath, ...] = Field(
        default=(),
        description="PEM files with the authorities that engines' certificates are checked "
        "against, in place of the system's",
    )
    client_cert_path: FilePath | None = Field(
        default=None, description="PEM file with the certificate that the router shows to engines"
    )
    client_key_path: FilePath | None = Field(
        default=None, description="PEM file with the private key of --client-cert-path"
    )

    @model_validator(mode="after")
    def _certificates_have_keys(self) -> Self:
        _together("tls", self.tls_cert_path, self.tls_key_path)
        _together("client", self.client_cert_path, self.client_key_path)
        return self


_VLLM_LEVELS = {"warning": "warn", "critical": "error"}
"""vllm-router's words -> those of here."""


def _log_level(word: object) -> object:
    return _VLLM_LEVELS.get(word, word) if isinstance(word, str) else word


class ObservationOptions(Section):
    """What the router says of itself."""

    title: ClassVar[str] = "Metrics and log"

    # sglang-router always listens on 29000; here /metrics is on the main port anyway.
    prometheus_port: OptionalPort = Field(
        default=None,
        description="port for /metrics, besides --port; 0: any free one; none: --port alone",
    )
    prometheus_host: Host = Field(default="0.0.0.0", description="address for --prometheus-port")
    log_level: Annotated[Literal["debug", "info", "warn", "error"], BeforeValidator(_log_level)] = (
        Field(
            default="info",
            description="the log goes to standard error; vllm-router's warning and critical are "
            "taken as warn and error",
        )
    )


def _together(kind: str, certificate: str | None, key: str | None) -> None:
    if (certificate is None) != (key is None):
        given, missing = ("cert", "key") if key is None else ("key", "cert")
        raise ValueError(
            f"a certificate and its key go together: --{kind}-{given}-path is given, "
            f"--{kind}-{missing}-path is not"
        )
