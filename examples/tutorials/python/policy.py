"""Fills engines one after the other, so that idle ones can be stopped."""

from contract import PolicyInput

DEFAULT_LIMIT = 8  # a worker with this many requests in flight is full


def choose(input: PolicyInput) -> int | None:
    """The index of a worker, or None for "no worker should take this request"."""
    limit = input.config.get("limit", DEFAULT_LIMIT)
    load = [worker.load for worker in input.workers]
    healthy = [index for index, worker in enumerate(input.workers) if worker.healthy]
    free = [index for index in healthy if load[index] < limit]
    if not free:
        return min(healthy, key=lambda index: load[index], default=None)
    return max(free, key=lambda index: load[index])  # the first of equals
