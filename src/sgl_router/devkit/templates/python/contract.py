"""What a policy is given and what it answers. Nothing here needs to be touched to write a policy.

The router's records (wit/policy.wit) have the same attributes; those of here are for editors, type
checkers and for tests in plain Python.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class EngineMetrics:
    """What an engine last said of itself."""

    queued: int
    running: int
    kv_usage: float | None  # 0 to 1
    metrics_age_ms: int


@dataclass
class WorkerInfo:
    id: str
    weight: float
    labels: list[tuple[str, str]]
    ttft_ms: float | None  # moving average


@dataclass
class Worker:
    """One engine; the last four are None unless `needs` in plugin.toml asks for them."""

    url: str
    healthy: bool  # one that is not must not be chosen
    load: int  # requests in flight
    pending_tokens: int | None = None  # prompt tokens sent to it and not answered yet
    prefix_match: int | None = None  # tokens of this prompt that it still holds
    engine_metrics: EngineMetrics | None = None
    worker_info: WorkerInfo | None = None


@dataclass
class Request:
    """Model, stream and session are in the body: they need `reads_body = true` in plugin.toml."""

    id: str = ""
    path: str = "/v1/chat/completions"
    model: str | None = None
    stream: bool = False
    session: str | None = None
    attempt: int = 0
    text_bytes: int = 0
    prompt_tokens: int | None = None  # where `needs` asks for pending_tokens


@dataclass
class PolicyInput:
    workers: list[Worker]
    request_text: str | None = None  # where `needs` asks for it
    request: Request = field(default_factory=Request)
    config: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Any] = field(default_factory=dict)  # what the policy has returned before
    now_ms: int = 0  # Unix time
    entropy: int = 0  # 53 random bits, new for each decision


@dataclass
class Outcome:
    """How a request that this plugin placed has ended."""

    worker: str
    success: bool
    status: int | None
    ttft_ms: float | None
    duration_ms: float
    output_chunks: int
    error: str | None


Answer = int | None | tuple[int | None, dict[str, Any] | None]
"""An index into the workers, None for "no worker should take this request"; or that with what is to
be merged into the state key by key."""
