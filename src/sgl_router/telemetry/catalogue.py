"""Every metric of the router, each described once; `docs/metrics.md` says the same.

Names end in a unit of Prometheus' (seconds, bytes, ratio, total). Bounds of buckets are seconds.
"""

from dataclasses import dataclass
from typing import Literal

OTHER = "other"
"""Stands for whatever a label does not name."""

REMOVED = "removed"
"""In the label `worker`: the requests of workers that left before their requests ended."""

DURATION_BOUNDS = (
    *(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0),
    *(10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0),
)
"""Up to the default of --request-timeout-secs."""

TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
"""vLLM's up to 80 s (the first sixteen are also OpenTelemetry's), so that its panels fit."""

GAP_BOUNDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2),
    *(0.3, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0),
)
"""From speculative decoding to a stream that stalls."""

DECISION_BOUNDS = (
    *(1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    *(1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.2, 0.5, 1.0),
)
"""From a built-in policy to a plugin that is stopped at its deadline."""


@dataclass(frozen=True, slots=True)
class Described:
    """One metric.

    Attributes:
        name: as it is exported, counters with `_total`.
        kind: its type in Prometheus.
        help: its HELP text.
        labels: their names.
        bounds: the buckets' upper bounds in seconds, `+Inf` left out; of histograms only.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


# ---- requests

REQUESTS = Described(
    "sgl_router_requests_total",
    "counter",
    "Requests that were placed on a worker and have ended, each attempt counted.",
    ("path", "status", "outcome"),
)
WORKER_REQUESTS = Described(
    "sgl_router_worker_requests_total",
    "counter",
    "The same requests by the worker that had them.",
    ("worker", "status", "outcome"),
)
DURATION = Described(
    "sgl_router_request_duration_seconds",
    "histogram",
    "From a request's arrival to the end of its answer, or of the attempt.",
    ("path", "outcome"),
    DURATION_BOUNDS,
)
TTFT = Described(
    "sgl_router_ttft_seconds",
    "histogram",
    "From a request's arrival to the first byte of the body of a successful answer.",
    ("path",),
    TTFT_BOUNDS,
)
GAP = Described(
    "sgl_router_inter_chunk_seconds",
    "histogram",
    "Mean time between the chunks of one successful answer that came in two or more.",
    ("path",),
    GAP_BOUNDS,
)
CHUNKS = Described(
    "sgl_router_output_chunks_total",
    "counter",
    "Pieces in which the bodies of successful answers arrived from the engines.",
    ("path",),
)
RETRIES = Described(
    "sgl_router_retries_total",
    "counter",
    "Requests that were tried again, by the reason.",
    ("reason",),
)
ERRORS = Described(
    "sgl_router_errors_total",
    "counter",
    "Errors that the router answered itself, by their code.",
    ("code",),
)
ABORTED = Described(
    "sgl_router_aborted_requests_total",
    "counter",
    "Requests whose client left before its answer was complete.",
)

# ---- policies

DECISION = Described(
    "sgl_router_decision_seconds",
    "histogram",
    "What a decision took, a fallback policy's time included in that of the policy that failed.",
    ("policy",),
    DECISION_BOUNDS,
)
POLICY_FAILURES = Described(
    "sgl_router_policy_failures_total",
    "counter",
    "Decisions in which a policy failed, so that its fallback policy decided.",
    ("policy", "kind"),
)

# ---- plugins

PLUGIN_INFO = Described(
    "sgl_router_plugin_info",
    "gauge",
    "1 for each plugin that is loaded, with what is known of the version that decides.",
    ("plugin", "version", "sha256"),
)
PLUGIN_QUARANTINE = Described(
    "sgl_router_plugin_quarantine_state",
    "gauge",
    "The plugin's quarantine: 0 closed, it is asked; 1 open, its fallback policy decides; "
    "2 half open, one decision tries it out.",
    ("plugin",),
)
PLUGIN_OFFLOADED = Described(
    "sgl_router_plugin_offloaded",
    "gauge",
    "1 where the plugin decides on a thread of its own, 0 where on the event loop.",
    ("plugin",),
)
PLUGIN_WAITING = Described(
    "sgl_router_plugin_waiting_decisions",
    "gauge",
    "Calls that have not come back from the plugin's thread: decisions, and outcomes that it is "
    "told.",
    ("plugin",),
)
PLUGIN_STALE = Described(
    "sgl_router_plugin_stale",
    "gauge",
    "1 where the newest module or settings of the plugin's source are not in use, else 0.",
    ("plugin",),
)
PLUGIN_MEMORY = Described(
    "sgl_router_plugin_memory_bytes",
    "gauge",
    "Linear memory of the plugin's instance, 0 while it has none.",
    ("plugin",),
)
PLUGIN_QUARANTINES = Described(
    "sgl_router_plugin_quarantines_total",
    "counter",
    "Quarantines of the plugin that have begun, a failed probe not counted.",
    ("plugin",),
)
PLUGIN_SWAPS = Described(
    "sgl_router_plugin_swaps_total",
    "counter",
    "Times that another version of the plugin took over, back or forth.",
    ("plugin",),
)
SHADOW_DECISIONS = Described(
    "sgl_router_shadow_decisions_total",
    "counter",
    "Decisions that a plugin in shadow was to take, by how they compare with those in use.",
    ("plugin", "outcome"),
)

# ---- the router as it is

RUNNING = Described(
    "sgl_router_running_requests", "gauge", "Requests that were admitted and have not ended."
)
WAITING = Described("sgl_router_waiting_requests", "gauge", "Requests in the queue for admission.")
CLIENT_CONNECTIONS = Described(
    "sgl_router_client_connections", "gauge", "Open connections from clients."
)
KEPT_CONNECTIONS = Described(
    "sgl_router_kept_connections",
    "gauge",
    "Idle connections to engines that are kept for the next request.",
)
WORKERS = Described(
    "sgl_router_workers", "gauge", "Workers in the pool, by what is known of them.", ("health",)
)

# ---- each worker as it is

WORKER_HEALTHY = Described(
    "sgl_router_worker_healthy", "gauge", "1 where the worker's engine is up, else 0.", ("worker",)
)
WORKER_CIRCUIT = Described(
    "sgl_router_worker_circuit_state",
    "gauge",
    "The worker's circuit breaker: 0 closed, 1 open, 2 half open.",
    ("worker",),
)
WORKER_RUNNING = Described(
    "sgl_router_worker_running_requests",
    "gauge",
    "Requests in flight on the worker through this router.",
    ("worker",),
)
WORKER_PENDING_TOKENS = Described(
    "sgl_router_worker_pending_tokens",
    "gauge",
    "Estimated prompt tokens sent to the worker that have not led to a first byte; "
    "0 while no policy needs them counted.",
    ("worker",),
)
WORKER_TTFT = Described(
    "sgl_router_worker_ttft_seconds",
    "gauge",
    "Moving average of the time to the first byte of the worker's answers.",
    ("worker",),
)
ENGINE_QUEUED = Described(
    "sgl_router_worker_engine_queued_requests",
    "gauge",
    "Requests that wait in the engine, as it last said; while a policy needs it polled.",
    ("worker",),
)
ENGINE_RUNNING = Described(
    "sgl_router_worker_engine_running_requests",
    "gauge",
    "Requests that the engine works on, as it last said; while a policy needs it polled.",
    ("worker",),
)
ENGINE_KV_USAGE = Described(
    "sgl_router_worker_engine_kv_usage_ratio",
    "gauge",
    "Share of the engine's KV cache in use, as it last said; while a policy needs it polled.",
    ("worker",),
)
ENGINE_REPORT_TIME = Described(
    "sgl_router_worker_engine_report_timestamp_seconds",
    "gauge",
    "When the engine last said so, in Unix time.",
    ("worker",),
)

CATALOGUE: tuple[Described, ...] = (
    *(REQUESTS, WORKER_REQUESTS, DURATION, TTFT, GAP, CHUNKS, RETRIES, ERRORS, ABORTED),
    *(DECISION, POLICY_FAILURES),
    *(PLUGIN_INFO, PLUGIN_QUARANTINE, PLUGIN_OFFLOADED, PLUGIN_WAITING, PLUGIN_STALE),
    *(PLUGIN_MEMORY, PLUGIN_QUARANTINES, PLUGIN_SWAPS, SHADOW_DECISIONS),
    *(RUNNING, WAITING, CLIENT_CONNECTIONS, KEPT_CONNECTIONS, WORKERS),
    *(WORKER_HEALTHY, WORKER_CIRCUIT, WORKER_RUNNING, WORKER_PENDING_TOKENS, WORKER_TTFT),
    *(ENGINE_QUEUED, ENGINE_RUNNING, ENGINE_KV_USAGE, ENGINE_REPORT_TIME),
)
