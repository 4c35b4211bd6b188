"""Picks the healthy worker with the fewest requests in flight."""

from contract import PolicyInput


def choose(input: PolicyInput) -> int | None:
    """The index of a worker, or None for "no worker should take this request"."""
    healthy = [index for index, worker in enumerate(input.workers) if worker.healthy]
    if not healthy:
        return None
    lowest = min(input.workers[index].load for index in healthy)
    ties = [index for index in healthy if input.workers[index].load == lowest]
    # Always taking the first one would send the requests of an idle pool to a single worker.
    return ties[input.entropy % len(ties)]
