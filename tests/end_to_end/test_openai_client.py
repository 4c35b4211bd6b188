"""The official OpenAI client against llama.cpp: the same with the router and without it."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from openai import OpenAI

from tests.end_to_end.process import RouterProcess, launched
from tests.engines.llama import LlamaServer

# What differs between two answers of the very same engine to the very same request.
VOLATILE = {"id", "created", "timings", "prompt_tokens_details"}
PROMPTS = ["Hello", "Tell me about load balancing.", "ümlaut and 中文", "a" * 300]


@pytest.fixture(scope="module", params=["least_connections", "weighted_random", "round_robin"])
def router(
    request: pytest.FixtureRequest, llama_engines: Sequence[LlamaServer]
) -> Iterator[RouterProcess]:
    urls = [engine.url for engine in llama_engines]
    with launched(
        "--worker-urls", *urls, "--policy", request.param, "--health-check-interval-secs", "1"
    ) as process:
        wait_until_ready(process)
        yield process


def wait_until_ready(router: RouterProcess) -> None:
    """The first health check has been answered when the models of all engines are listed."""
    with client_of(router.url) as client:
        client.with_options(max_retries=20).models.list()


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30)


def stable(answer: Any) -> Any:
    """An answer without what differs from one time to the next."""
    if isinstance(answer, dict):
        return {key: stable(value) for key, value in answer.items() if key not in VOLATILE}
    if isinstance(answer, list):
        return [stable(item) for item in answer]
    return answer


def chat(client: OpenAI, prompt: str, **options: Any) -> Any:
    return client.chat.completions.create(
        model="tiny",
        messages=[{"role": "user", "content": prompt}],
        max_tokens=24,
        temperature=0,
        **options,
    )


@pytest.mark.parametrize("prompt", PROMPTS)
def test_chat(router: RouterProcess, llama_engines: Sequence[LlamaServer], prompt: str) -> None:
    with client_of(llama_engines[0].url) as direct, client_of(router.url) as routed:
        expected = stable(chat(direct, prompt).model_dump())
        for _ in llama_engines:
            assert stable(chat(routed, prompt).model_dump()) == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_streaming_chat(
    router: RouterProcess, llama_engines: Sequence[LlamaServer], prompt: str
) -> None:
    def stream(client: OpenAI) -> list[Any]:
        options = {"include_usage": True}
        chunks = chat(client, prompt, stream=True, stream_options=options)
        return [stable(chunk.model_dump()) for chunk in chunks]

    with client_of(llama_engines[0].url) as direct, client_of(router.url) as routed:
        expected = stream(direct)
        assert len(expected) > 24
        for _ in llama_engines:
            assert stream(routed) == expected


@pytest.mark.parametrize("prompt", PROMPTS)
def test_completion(
    router: RouterProcess, llama_engines: Sequence[LlamaServer], prompt: str
) -> None:
    def complete(client: OpenAI) -> Any:
        completion = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=24, temperature=0
        )
        return stable(completion.model_dump())

    with client_of(llama_engines[0].url) as direct, client_of(router.url) as routed:
        expected = complete(direct)
        for _ in llama_engines:
            assert complete(routed) == expected


def test_models(router: RouterProcess, llama_engines: Sequence[LlamaServer]) -> None:
    with client_of(llama_engines[0].url) as direct, client_of(router.url) as routed:
        names = [model.id for model in routed.models.list()]
        assert names == [model.id for model in direct.models.list()]
