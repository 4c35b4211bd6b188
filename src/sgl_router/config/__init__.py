"""Settings: one schema, from which flags, environment, file keys and the reference page come."""

from sgl_router.config.fields import PrefillEngine, WorkerSettings
from sgl_router.config.flags import add_flags
from sgl_router.config.load import load_config
from sgl_router.config.schema import RouterConfig

__all__ = ["PrefillEngine", "RouterConfig", "WorkerSettings", "add_flags", "load_config"]
