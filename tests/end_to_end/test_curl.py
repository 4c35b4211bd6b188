"""curl gets the same bytes from llama.cpp through the router as straight from it."""

import asyncio
import re
import shutil
from collections.abc import Iterator, Sequence

import pytest

from tests.conftest import leave_out
from tests.end_to_end.process import RouterProcess, launched
from tests.engines.llama import LlamaServer

CHAT = (
    '{"model": "m", "messages": [{"role": "user", "content": "Tell me a story."}],'
    ' "max_tokens": 12, "temperature": 0, "seed": 1%s}'
)
ITS_OWN = re.compile(
    rb'"(?:id|created|model_created)": ?(?:"[^"]*"|\d+)|"timings": ?\{[^}]*\}|"cached_tokens": ?\d+'
)
"""What differs between two answers of one engine: ids, times, and what its cache spared it."""


@pytest.fixture(params=["round_robin", "cache_aware", "least_connections"])
def router(
    request: pytest.FixtureRequest, llama_engines: Sequence[LlamaServer]
) -> Iterator[RouterProcess]:
    if shutil.which("curl") is None:
        leave_out("curl is not installed")
    options = ["--policy", request.param, "--disable-health-check"]
    with launched(*options, "--worker-urls", llama_engines[0].url) as process:
        yield process


async def curl(base: str, path: str, body: str) -> tuple[bytes, bytes]:
    """The answer's body, and its status with the content type."""
    process = await asyncio.create_subprocess_exec(
        *("curl", "-sSN", f"{base}{path}", "-d", body),
        *("-H", "Content-Type: application/json", "-w", r"\n%{http_code} %{content_type}"),
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate()
    assert process.returncode == 0
    content, _, told = answer.rpartition(b"\n")
    return ITS_OWN.sub(b"-", content), told


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT % ""),
        ("/v1/chat/completions", CHAT % ', "stream": true'),
        ("/v1/completions", '{"prompt": "Once", "max_tokens": 8, "temperature": 0, "seed": 1}'),
        ("/tokenize", '{"content": "Once upon a time"}'),
        ("/v1/chat/completions", '{"messages": "none"}'),
    ],
    ids=["chat", "stream", "completion", "tokenize", "refused"],
)
async def test_the_same_bytes(
    router: RouterProcess, llama_engines: Sequence[LlamaServer], path: str, body: str
) -> None:
    straight = await curl(llama_engines[0].url, path, body)
    assert straight[0]
    assert await curl(router.url, path, body) == straight
