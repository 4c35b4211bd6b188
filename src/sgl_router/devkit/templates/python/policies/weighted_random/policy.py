"""Picks a healthy worker at random, each as often as its weight says."""

from contract import PolicyInput


def choose(input: PolicyInput) -> int | None:
    """The index of a worker, or None for "no worker should take this request"."""
    weights = input.config.get("weights", {})  # by URL; a worker that is not named has weight 1
    for url, weight in weights.items():
        if type(weight) not in (int, float) or weight < 0:
            raise ValueError(f"weight of {url} must be a number >= 0, not {weight!r}")
    candidates = []
    total = 0.0
    for index, worker in enumerate(input.workers):
        weight = weights.get(worker.url, 1)
        if worker.healthy and weight > 0:
            candidates.append((index, weight))
            total += weight
    target = input.entropy / (1 << 53) * total

    # The candidates lie side by side on a line from 0 to total. The one under the target is the
    # last that begins at or before it; asking for the beginning, not the end, leaves no gap at
    # total into which a rounded target could fall.
    begin, selected = 0.0, None
    for index, weight in candidates:
        if begin > target:
            break
        selected = index
        begin += weight
    return selected
