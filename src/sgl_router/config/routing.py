"""Options of what becomes of a request: which engines there are, and which of them gets it."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from sgl_router.config.fields import (
    Count,
    CountOrZero,
    Factor,
    Milliseconds,
    PluginConfig,
    Prefill,
    Seconds,
    Section,
    Share,
    UrlPath,
    WorkerSettings,
    WorkerUrl,
)


class WorkerOptions(Section):
    """The engines."""

    title: ClassVar[str] = "Workers"

    worker_urls: tuple[WorkerUrl, ...] = Field(
        default=(),
        description="the engines: http://HOST:PORT or https://HOST:PORT, one or more; without the "
        "/v1 that clients add, as a path here is put before that of each request",
    )
    workers: tuple[WorkerSettings, ...] = Field(
        default=(),
        description="engines with more than a URL: a list of mappings with url and any of "
        "worker_type (regular, prefill, decode), model_id, labels, priority (50), cost (1), "
        "weight (1), api_key and bootstrap_port; in a variable, the list as JSON",
    )
    worker_startup_timeout_secs: Seconds = Field(
        default=1800.0,
        description="how long an engine may take to be ready at first; then the log has an error, "
        "and checks go on",
    )
    # Not sglang-router's 30: a check costs little, waiting for one a lot.
    worker_startup_check_interval: Seconds = Field(
        default=1.0,
        description="seconds between checks of an engine that is not ready, or no longer; "
        "sglang-router's 30 would leave one that is ready without work",
    )


class PolicyOptions(Section):
    """Who gets a request."""

    title: ClassVar[str] = "Policy"

    policy: str = Field(
        default="power_of_two",
        description="how a worker is chosen: a built-in policy (random, round_robin, "
        "power_of_two, least_load, cache_aware, consistent_hashing, prefix_hash, manual), a "
        "plugin that comes with the router (least_connections, weighted_random, "
        "power_of_two_table), the name of a plugin given by --plugin, or the path of a .wasm file",
    )
    plugin: tuple[str, ...] = Field(
        default=(),
        description="WebAssembly plugins to load besides: paths of .wasm files, each named "
        "by its file's name without .wasm",
    )
    plugin_config: PluginConfig = Field(
        default=None,
        description="settings of plugins by name: a YAML file, or in the configuration file the "
        "settings themselves",
    )
    plugin_store: str | None = Field(
        default=None,
        description="folder for plugins that are sent to the router (PUT /plugins), which are "
        "found there after a restart; none: they are not kept. Without it, the state folder of "
        "the service ($STATE_DIRECTORY) or of the user (~/.local/state/sgl-router/plugins)",
    )
    cache_threshold: Share = Field(
        default=0.3,
        description="cache_aware: the share of a prompt, 0 to 1, that must have been sent to a "
        "worker before, for the worker to be preferred",
    )
    balance_abs_threshold: CountOrZero = Field(
        default=64,
        description="cache_aware: a preferred worker is passed over when it has this many "
        "requests more than the mean, and --balance-rel-threshold is exceeded too",
    )
    balance_rel_threshold: Factor = Field(
        default=1.5,
        description="cache_aware: a preferred worker is passed over when it has this many times "
        "the mean of requests, and --balance-abs-threshold is exceeded too",
    )
    eviction_interval_secs: Seconds = Field(
        default=60.0,
        description="cache_aware: taken because sglang-router has it; what is beyond "
        "--max-tree-size is forgotten at once here, so that it changes nothing",
    )
    max_tree_size: Count = Field(
        default=2**26,
        description="cache_aware: characters of prompts remembered; beyond that the least recently "
        "sent are forgotten",
    )
    max_idle_secs: Seconds = Field(
        default=14400.0, description="manual: how long a key that is not used stays on its worker"
    )


class PrefillDecodeOptions(Section):
    """The two halves of a request on two engines."""

    title: ClassVar[str] = "Prefill and decode on separate engines"

    pd_disaggregation: bool = Field(
        default=False,
        description="give the prefill of a request to one engine and the decode to another",
    )
    prefill: tuple[Prefill, ...] = Field(
        default=(),
        description="a prefill engine, and the port of its bootstrap server where it has one "
        "(else none, or nothing); the flag is repeated for each engine",
    )
    decode: tuple[WorkerUrl, ...] = Field(
        default=(), description="the decode engines; the flag may be repeated"
    )
    prefill_policy: str | None = Field(
        default=None, description="who gets the prefill, where that is not decided by --policy"
    )
    decode_policy: str | None = Field(
        default=None, description="who gets the decode, where that is not decided by --policy"
    )
    pd_engine: Literal["sglang", "vllm"] = Field(
        default="sglang",
        description="how the halves meet: sglang sends to both engines at once, with a bootstrap "
        "room in the body; vllm sends to the prefill engine first, and its kv_transfer_params to "
        "the decode engine",
    )


class RetryOptions(Section):
    """Requests that are sent again."""

    title: ClassVar[str] = "Retries"

    retry_max_retries: CountOrZero = Field(
        default=5, description="how many more workers a request that failed is given to, at most"
    )
    retry_initial_backoff_ms: Milliseconds = Field(
        default=50, description="wait before the first retry, in milliseconds"
    )
    retry_max_backoff_ms: Milliseconds = Field(
        default=30000, description="longest wait before a retry, in milliseconds"
    )
    retry_backoff_multiplier: Factor = Field(
        default=1.5, description="each wait is this many times the one before"
    )
    retry_jitter_factor: Share = Field(
        default=0.2,
        description="share of a wait, 0 to 1, by which it is longer or shorter at random",
    )
    disable_retries: bool = Field(default=False, description="send no request a second time")

    @model_validator(mode="after")
    def _backoff_grows(self) -> Self:
        if self.retry_initial_backoff_ms > self.retry_max_backoff_ms:
            raise ValueError(
                f"the first wait before a retry, {self.retry_initial_backoff_ms} ms, is longer "
                f"than the longest, {self.retry_max_backoff_ms} ms (options "
                "--retry-initial-backoff-ms and --retry-max-backoff-ms)"
            )
        return self


class BreakerOptions(Section):
    """Workers that fail requests."""

    title: ClassVar[str] = "Circuit breaker"

    cb_failure_threshold: Count = Field(
        default=10,
        description="failed requests within the window after which a worker's circuit opens: it "
        "is given no more",
    )
    cb_success_threshold: Count = Field(
        default=3, description="probes in a row that must succeed for an open circuit to close"
    )
    cb_timeout_duration_secs: Seconds = Field(
        default=60.0, description="how long a circuit stays open before a request probes it"
    )
    cb_window_duration_secs: Seconds = Field(
        default=120.0, description="the window in which failures are counted"
    )
    disable_circuit_breaker: bool = Field(
        default=False, description="whatever requests become of, only checks take a worker out"
    )


class HealthOptions(Section):
    """Workers that fail checks."""

    title: ClassVar[str] = "Health checks"

    health_check_endpoint: UrlPath = Field(
        default="/health", description="path that tells an engine's health"
    )
    health_check_interval_secs: Seconds = Field(
        default=60.0,
        description="between checks of a healthy worker; others are checked every "
        "--worker-startup-check-interval",
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


class EngineMetricsOptions(Section):
    """What engines say of themselves."""

    title: ClassVar[str] = "Metrics of the engines"

    engine_metrics_interval_secs: Seconds = Field(
        default=1.0,
        description="between readings of an engine's queue and KV cache, for policies that use "
        "them",
    )
    engine_metrics_endpoint: UrlPath = Field(
        default="/metrics", description="path of an engine's metrics in Prometheus's text format"
    )
