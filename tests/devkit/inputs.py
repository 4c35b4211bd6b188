"""Inputs of the JSON ABI on which all templates of a policy are to decide alike."""

from random import Random
from typing import Any

URLS = tuple(f"http://10.0.0.{number}:30000" for number in range(1, 13))

_EDGES = (0, 1, 2, 3, 2**51, 2**52 - 1, 2**52, 2**52 + 1, 2**53 - 2, 2**53 - 1)
_SESSIONS = (None, "", "u42", "a", "käthe", "日本", "🦀 und 🐍", "\u0000\u0001", '"\\/\n', "\u2028")
_WEIGHTS = (0, 0, 0.0, 0.1, 0.2, 0.3, 0.7, 1, 1.5, 2, 3, 1e-9, 12.34, 100, 1e12)
_CONFIGS = 16
_MODEL = "llama"


def generated(seed: int, count: int, policy: str) -> list[dict[str, Any]]:
    """Inputs for one of the four policies, the same for the same arguments.

    Few configurations occur, since a plugin is loaded with one. Where `prompt_tokens` is given,
    `text_bytes` is what a text of as many tokens has at four characters a token.
    """
    random = Random(f"{seed} {policy}")
    configs = [_config(random, policy, number) for number in range(_CONFIGS)]
    return [_input(random, policy, random.choice(configs)) for _ in range(count)]


def _input(random: Random, policy: str, config: dict[str, Any]) -> dict[str, Any]:
    urls = random.sample(URLS, random.randint(0, len(URLS)))
    health = random.choice((0.0, 0.3, 0.8, 0.8, 0.8, 1.0, 1.0, 1.0))
    most = random.choice((0, 1, 3, 3, 100, 100_000))
    workers: list[dict[str, Any]] = [
        {"url": url, "healthy": random.random() < health, "load": random.randint(0, most)}
        for url in urls
    ]
    request: dict[str, Any] = {
        "id": f"req-{random.getrandbits(32):08x}",
        "path": "/v1/chat/completions",
        "model": _MODEL,
        "stream": random.random() < 0.5,
        "session": None,
        "attempt": random.choice((0, 0, 0, 1)),
        "text_bytes": 0,
    }
    if policy == "sticky_session":
        _add_session(random, request)
    if policy == "lmetric":
        _add_tokens(random, workers, request)
    return {
        "workers": workers,
        "request_text": None,
        "config": config,
        "state": {},
        "request": request,
        "now_ms": random.randint(1, 2**41),
        "entropy": random.choice(_EDGES) if random.random() < 0.3 else random.getrandbits(53),
    }


def _config(random: Random, policy: str, number: int) -> dict[str, Any]:
    """One without weights, one with a negative weight; the others name some of the workers."""
    if policy != "weighted_random" or number == 0:
        return {}
    named = random.sample(URLS, random.randint(6, len(URLS)))
    weights = {url: random.choice(_WEIGHTS) for url in named}
    if number == 1:
        weights[named[0]] = -1
    elif number == 2:
        weights = dict.fromkeys(URLS, 0)
    return {"weights": weights}


def _add_session(random: Random, request: dict[str, Any]) -> None:
    kind = random.random()
    if kind < 0.05:
        del request["session"]
    elif kind < 0.3:
        request["session"] = random.choice(_SESSIONS)
    elif kind < 0.4:
        request["session"] = "".join(
            chr(random.choice((0x20, 0x7F, 0xE9, 0x7FF, 0x800, 0xFFFD, 0x10000, 0x10FFFF)))
            for _ in range(random.randint(1, 60))
        )
    else:
        request["session"] = f"session-{random.getrandbits(53):x}"


def _add_tokens(random: Random, workers: list[dict[str, Any]], request: dict[str, Any]) -> None:
    most = random.choice((0, 8, 500, 500, 4_000))
    tokens = random.randint(0, most)
    request["text_bytes"] = tokens * 4 + random.randint(0, 3)
    if tokens or random.random() < 0.5:
        request["prompt_tokens"] = tokens
    pending = random.choice((0, 2, 5_000, 5_000, 2**40))
    for worker in workers:
        if random.random() < 0.9:
            worker["pending_tokens"] = random.randint(0, pending)
        if random.random() < 0.9:
            worker["prefix_match"] = random.choice((0, 0, tokens, random.randint(0, tokens + 8)))
