"""sgl-router: routes requests to LLM inference engines by policies that are WebAssembly plugins."""

__version__ = "0.1.0"
