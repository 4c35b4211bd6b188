"""Ids for requests that come without one."""

import random

# What sglang-router prepends, so that ids look alike behind either router.
_PREFIXES = {
    "/v1/chat/completions": "chatcmpl-",
    "/v1/completions": "cmpl-",
    "/generate": "gnt-",
}


class RequestIds:
    """96 random bits each; unpredictable enough to be unique, not meant to be a secret."""

    def __init__(self) -> None:
        self._random = random.Random()

    def new(self, path: str) -> str:
        return f"{_PREFIXES.get(path, 'req-')}{self._random.getrandbits(96):024x}"
