"""Ids for requests that come without one."""

import os
from itertools import count

# What sglang-router prepends, so that ids look alike behind either router.
_PREFIXES = {
    "/v1/chat/completions": "chatcmpl-",
    "/v1/completions": "cmpl-",
    "/generate": "gnt-",
}


class RequestIds:
    """64 random bits for the process, and a number; unique, not meant to be a secret."""

    def __init__(self) -> None:
        self._process = os.urandom(8).hex()
        self._next = count()

    def new(self, path: str) -> str:
        return f"{_PREFIXES.get(path, 'req-')}{self._process}{next(self._next):08x}"
