"""Every option of the router, each spelt once.

A field `worker_urls` is the flag `--worker-urls`, the variable `SGL_ROUTER_WORKER_URLS` and the
key `worker_urls` of the configuration file. Names and defaults are sglang-router's where it has
the option.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
HeaderName = Annotated[str, Field(pattern=r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$")]
Count = Annotated[int, Field(ge=1)]


class RouterConfig(BaseModel):
    """What `sgl-router launch` is told."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field(default="0.0.0.0", description="address to listen on")
    port: int = Field(
        default=30000, ge=0, le=65535, description="port to listen on; 0: any free one"
    )
    worker_urls: tuple[str, ...] = Field(
        default=(), description="the engines: http://HOST:PORT, one or more"
    )
    policy: str = Field(
        default="power_of_two",
        description="how a worker is chosen: a built-in policy (random, round_robin, "
        "power_of_two, least_load), a plugin that comes with the router (least_connections, "
        "weighted_random), the name of a plugin given by --plugin, or the path of a .wasm file",
    )
    plugin: tuple[str, ...] = Field(
        default=(),
        description="WebAssembly plugins to load besides: paths of .wasm files, each named "
        "by its file's name without .wasm",
    )
    plugin_config: dict[str, dict[str, Any]] | str | None = Field(
        default=None,
        description="settings of plugins by name: a YAML file, or in the configuration file the "
        "settings themselves",
    )
    max_payload_size: Count = Field(
        default=512 * 1024 * 1024, description="largest request body, in bytes"
    )
    request_timeout_secs: Seconds = Field(
        default=1800.0, description="from a request's head to the end of its answer"
    )
    request_id_headers: tuple[HeaderName, ...] = Field(
        default=("x-request-id", "x-correlation-id", "x-trace-id", "request-id"),
        description="request headers that may hold the request's id; the first present counts",
    )
    shutdown_grace_period_secs: Annotated[float, Field(ge=0, allow_inf_nan=False)] = Field(
        default=180.0, description="how long requests under way may take to end after SIGTERM"
    )
    health_check_endpoint: str = Field(
        default="/health", pattern=r"^/[!-~]*$", description="path that tells an engine's health"
    )
    health_check_interval_secs: Seconds = Field(
        default=60.0,
        description="between checks of a healthy worker; others are checked every second",
    )
    health_check_timeout_secs: Seconds = Field(default=5.0, description="for one check")
    health_failure_threshold: Count = Field(
        default=3, description="failures in a row after which a worker is given no more requests"
    )
    health_success_threshold: Count = Field(
        default=2,
        description="successes in a row after which a worker that failed is given requests",
    )
    disable_health_check: bool = Field(
        default=False, description="check nothing; every worker counts as healthy"
    )
    log_level: Literal["debug", "info", "warn", "error"] = Field(
        default="info", description="log level"
    )
