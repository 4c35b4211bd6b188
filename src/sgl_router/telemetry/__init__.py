"""What the router measures of itself, for Prometheus."""

from sgl_router.telemetry.gauges import Sources
from sgl_router.telemetry.metrics import Telemetry

__all__ = ["Sources", "Telemetry"]
