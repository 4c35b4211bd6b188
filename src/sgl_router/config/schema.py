"""Every option of the router, each spelt once.

A field `worker_urls` is the flag `--worker-urls`, the variable `SGL_ROUTER_WORKER_URLS` and the
key `worker_urls` of the configuration file. The fields stand in `routing.py` and `serving.py`, by
topic. Names and defaults are sglang-router's where it has the option, but for `policy` (its
cache_aware suits one kind of traffic only), `worker_startup_check_interval` and `prometheus_port`.
"""

from typing import Self

from pydantic import model_validator

from sgl_router.config.fields import Section
from sgl_router.config.routing import (
    BreakerOptions,
    EngineMetricsOptions,
    HealthOptions,
    PolicyOptions,
    PrefillDecodeOptions,
    RetryOptions,
    WorkerOptions,
)
from sgl_router.config.serving import (
    AccessOptions,
    AdmissionOptions,
    ListenOptions,
    ObservationOptions,
    RequestOptions,
    TimeOptions,
    TlsOptions,
)


class RouterConfig(
    ListenOptions,
    WorkerOptions,
    PolicyOptions,
    PrefillDecodeOptions,
    RequestOptions,
    TimeOptions,
    AdmissionOptions,
    RetryOptions,
    BreakerOptions,
    HealthOptions,
    EngineMetricsOptions,
    AccessOptions,
    TlsOptions,
    ObservationOptions,
):
    """What `sgl-router launch` is told."""

    @model_validator(mode="after")
    def _engines_fit_the_mode(self) -> Self:
        roles = {worker.worker_type for worker in self.workers}
        roles |= {"prefill"} if self.prefill else set()
        roles |= {"decode"} if self.decode else set()
        roles |= {"regular"} if self.worker_urls else set()
        if self.pd_disaggregation:
            if "regular" in roles:
                raise ValueError(
                    "an engine for whole requests has nothing to do with --pd-disaggregation: "
                    "give each by --prefill URL or --decode URL, not by --worker-urls"
                )
            missing = [f"--{role} URL" for role in ("prefill", "decode") if role not in roles]
            if missing:
                raise ValueError(f"--pd-disaggregation needs {' and '.join(missing)} as well")
            return self
        halves = [role for role in ("prefill", "decode") if role in roles]
        if halves:
            raise ValueError(
                f"{' and '.join(halves)} engines are used with --pd-disaggregation only; give that "
                "as well, or list engines for whole requests by --worker-urls"
            )
        for flag, policy in (("prefill", self.prefill_policy), ("decode", self.decode_policy)):
            if policy is not None:
                raise ValueError(
                    f"--{flag}-policy is used with --pd-disaggregation only; without it the policy "
                    "is --policy"
                )
        return self


SECTIONS: tuple[type[Section], ...] = tuple(
    base for base in RouterConfig.__bases__ if issubclass(base, Section)
)
"""The topics in the order in which they are shown."""
