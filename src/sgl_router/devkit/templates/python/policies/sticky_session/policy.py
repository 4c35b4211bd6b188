"""Sends the requests of one session to one healthy worker, by rendezvous hashing: where a worker
goes or comes, only its own sessions move. A request without a session goes to the healthy worker
with the fewest requests in flight."""

from functools import lru_cache

from contract import PolicyInput

BITS = (1 << 64) - 1


def choose(input: PolicyInput) -> int | None:
    """The index of a worker, or None for "no worker should take this request"."""
    healthy = [index for index, worker in enumerate(input.workers) if worker.healthy]
    if not healthy:
        return None
    if not input.request.session:
        return lowest_load(input, healthy)
    key = fnv1a64(input.request.session)
    return max(healthy, key=lambda index: fmix64(key ^ hash_of_url(input.workers[index].url)))


def lowest_load(input: PolicyInput, healthy: list[int]) -> int:
    lowest = min(input.workers[index].load for index in healthy)
    ties = [index for index in healthy if input.workers[index].load == lowest]
    return ties[input.entropy % len(ties)]


def fnv1a64(text: str) -> int:
    """FNV-1a of 64 bits."""
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = (value ^ byte) * 0x100000001B3 & BITS
    return value


hash_of_url = lru_cache(maxsize=1024)(fnv1a64)


def fmix64(value: int) -> int:
    """The finalizer of MurmurHash3: makes one score of two hashes."""
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & BITS
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & BITS
    return value ^ value >> 33
