"""The four policies of the templates, as plain functions of the JSON ABI's input.

Every language's template decides as these do, on every input that the contract allows. The output
is the JSON ABI's: `selected_worker`, `state`, `error`.
"""

from bisect import bisect_right
from collections.abc import Callable
from itertools import accumulate
from typing import Any

Input = dict[str, Any]
Output = dict[str, Any]
Choose = Callable[[Input], int | None]

_MASK = (1 << 64) - 1
_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3


def least_connections(input: Input) -> Output:
    """The lowest load among the healthy; of those that tie, the one that the entropy names."""
    return _output(_least_connections, input)


def weighted_random(input: Input) -> Output:
    """A healthy worker, each with probability weight / total; a negative weight is an error."""
    return _output(_weighted_random, input)


def sticky_session(input: Input) -> Output:
    """Rendezvous hashing (Thaler and Ravishankar 1998) of the session; without one, as
    `least_connections`."""
    return _output(_sticky_session, input)


def lmetric(input: Input) -> Output:
    """The lowest product of tokens to prefill and batch size (LMetric, arXiv 2603.15202)."""
    return _output(_lmetric, input)


POLICIES: dict[str, Callable[[Input], Output]] = {
    policy.__name__: policy
    for policy in (least_connections, weighted_random, sticky_session, lmetric)
}


def fnv1a64(data: bytes) -> int:
    """FNV-1a of 64 bits (Fowler, Noll, Vo)."""
    value = _FNV_OFFSET
    for byte in data:
        value = (value ^ byte) * _FNV_PRIME & _MASK
    return value


def fmix64(value: int) -> int:
    """The finalizer of MurmurHash3, of 64 bits."""
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & _MASK
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return value ^ value >> 33


def _output(choose: Choose, input: Input) -> Output:
    try:
        if not all(isinstance(worker, dict) for worker in input["workers"]):
            raise TypeError("a worker is no object")
        selected_worker, error = choose(input), None
    except (KeyError, TypeError, ValueError) as refused:
        selected_worker, error = None, f"{type(refused).__name__}: {refused}"
    return {"selected_worker": selected_worker, "state": None, "error": error}


def _least_connections(input: Input) -> int | None:
    return _of_the_lowest(input, [_whole(worker["load"]) for worker in input["workers"]])


def _weighted_random(input: Input) -> int | None:
    weights: dict[str, float] = {}
    for url, weight in input["config"].get("weights", {}).items():
        if type(weight) not in (int, float):
            raise TypeError(f"weight of {url} must be a number, not {weight!r}")
        if weight < 0:
            raise ValueError(f"weight of {url} must be a number >= 0, not {weight}")
        weights[url] = float(weight)
    shares = {
        index: weights.get(worker["url"], 1.0)
        for index, worker in enumerate(input["workers"])
        if worker["healthy"] and weights.get(worker["url"], 1.0) > 0
    }
    # Added up one by one: from Python 3.12 on, `sum` rounds otherwise.
    *begins, total = accumulate(shares.values(), initial=0.0)
    target = _whole(input["entropy"]) / (1 << 53) * total
    return list(shares)[bisect_right(begins, target) - 1] if shares else None


def _sticky_session(input: Input) -> int | None:
    session = input.get("request", {}).get("session")
    if not session:
        return _least_connections(input)
    key = fnv1a64(session.encode("utf-8"))
    best, highest = None, -1
    for index, worker in enumerate(input["workers"]):
        score = fmix64(key ^ fnv1a64(worker["url"].encode("utf-8")))
        if worker["healthy"] and score > highest:
            best, highest = index, score
    return best


def _lmetric(input: Input) -> int | None:
    prompt = _whole(input.get("request", {}).get("prompt_tokens") or 0)
    costs = []
    for worker in input["workers"]:
        pending = _whole(worker.get("pending_tokens") or 0)
        missing = max(0, prompt - _whole(worker.get("prefix_match") or 0))
        costs.append((pending + missing) * (_whole(worker["load"]) + 1) & _MASK)
    return _of_the_lowest(input, costs)


def _of_the_lowest(input: Input, values: list[int]) -> int | None:
    """The healthy worker of the lowest value; of those that tie, number `entropy` modulo them."""
    healthy = [index for index, worker in enumerate(input["workers"]) if worker["healthy"]]
    if not healthy:
        return None
    lowest = min(values[index] for index in healthy)
    ties = [index for index in healthy if values[index] == lowest]
    return ties[_whole(input["entropy"]) % len(ties)]


def _whole(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"expected a whole number, not {value!r}")
    return value
