"""What all tests share: the event loop they run on, and what they may leave out."""

import os
from collections.abc import Iterator

import pytest
import uvloop

from tests.engines.llama import LlamaServer, write_model

REQUIRE_ALL = "SGL_ROUTER_TEST_REQUIRE_ALL"
"""Where this environment variable is 1, a test that would be left out fails instead."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin-dir",
        default=None,
        help="run the golden decisions against the .wasm files in this folder",
    )


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """The loop that the router runs on."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def llama_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LlamaServer]]:
    """Two llama.cpp servers with one model, so that they answer alike."""
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder / "tiny.gguf")
    with (
        LlamaServer(folder / "tiny.gguf", folder / "one.log") as one,
        LlamaServer(folder / "tiny.gguf", folder / "two.log") as two,
    ):
        yield [one, two]


def leave_out(reason: str) -> None:
    """Leave a test out because this machine lacks something; a failure where that is forbidden."""
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"{reason}; {REQUIRE_ALL}=1 lets nothing be left out")
    pytest.skip(reason)
