"""What the clients ask and how their figures are summed up; the same for every program measured."""

import json
import random
from collections.abc import Iterable, Sequence

PATH = "/v1/chat/completions"
MODEL = "m"
_SYSTEM = "You are a careful assistant. Answer in plain words and say what you do not know. " * 3
_WORDS = "the a of to and in is it you that he was for on are with as his they be at one have this"


def chat_bodies(count: int, size: int, *, stream: bool = False) -> list[bytes]:
    """Chat requests of exactly `size` bytes, each a user's, that share a system prompt.

    Were they all alike, a policy that reads them would be measured on one entry of its caches.
    Raises ValueError where `size` is too small to hold what they share.
    """
    draw = random.Random(0)
    words = _WORDS.split()
    bodies = []
    for number in range(count):
        missing = size - len(_chat_body(number, "", stream))
        if missing < 0:
            raise ValueError(f"a chat request of {size} bytes is too small by {-missing}")
        text = " ".join(draw.choices(words, k=min(missing, 2000) + 1))
        text *= missing // len(text) + 1
        bodies.append(_chat_body(number, text[:missing], stream))
    return bodies


def _chat_body(number: int, prompt: str, stream: bool) -> bytes:
    user = f"user-{number:06}"
    messages = [
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": f"I am {user}. {prompt}"},
    ]
    request = {"model": MODEL, "stream": stream, "user": user, "messages": messages}
    return json.dumps(request).encode("ascii")


def worker_urls(ports: Sequence[int], count: int) -> list[str]:
    """Different workers, all of them the same engine."""
    return [f"http://127.0.0.1:{ports[i % len(ports)]}/w{i}" for i in range(count)]


def http_request(host: str, body: bytes) -> bytes:
    """A POST of JSON, as bytes on the wire."""
    head = (
        f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Accept: */*\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value below which `share` of them lie (nearest rank); they are sorted, and not none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def summary(values: Iterable[float]) -> dict[str, float]:
    """The figures kept of a distribution; all zero where it is empty."""
    ordered = sorted(values) or [0.0]
    return {"p50": quantile(ordered, 0.5), "p99": quantile(ordered, 0.99), "max": ordered[-1]}
