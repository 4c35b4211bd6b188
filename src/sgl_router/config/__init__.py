"""Settings: one schema, from which flags, environment, file keys and the reference page come."""

from sgl_router.config.load import add_flags, load_config
from sgl_router.config.schema import RouterConfig

__all__ = ["RouterConfig", "add_flags", "load_config"]
