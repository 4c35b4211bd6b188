"""Picks the healthy worker with the lowest product of the prompt tokens that it would have to
prefill and the requests that it would serve (LMetric, arXiv 2603.15202)."""

from contract import PolicyInput, Worker

BITS = (1 << 64) - 1


def choose(input: PolicyInput) -> int | None:
    """The index of a worker, or None for "no worker should take this request"."""
    prompt_tokens = input.request.prompt_tokens or 0
    costs = {
        index: cost(worker, prompt_tokens)
        for index, worker in enumerate(input.workers)
        if worker.healthy
    }
    if not costs:
        return None
    lowest = min(costs.values())
    ties = [index for index in costs if costs[index] == lowest]
    return ties[input.entropy % len(ties)]


def cost(worker: Worker, prompt_tokens: int) -> int:
    """In 64 bits, beyond which it wraps around."""
    missing = max(0, prompt_tokens - (worker.prefix_match or 0))
    return ((worker.pending_tokens or 0) + missing) * (worker.load + 1) & BITS
