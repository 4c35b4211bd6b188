"""The composition root: builds everything below from a configuration, starts it and stops it."""

from sgl_router.server.process import run, run_loop
from sgl_router.server.router import RouterServer

__all__ = ["RouterServer", "run", "run_loop"]
