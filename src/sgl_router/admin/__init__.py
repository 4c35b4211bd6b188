"""The control plane: workers, probes and listings, as a FastAPI application without a server."""
