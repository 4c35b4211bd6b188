"""What all tests share: the event loop they run on, and what they may leave out."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
import uvloop
from hypothesis import settings

from sgl_router.policies import PolicyFactory
from sgl_router.wasm.calls import Calls, PublicCalls
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.engines.llama import LlamaServer, server_folder, write_model
from tests.made_once import made_once
from tests.wasm.guests import Bench

__all__ = ["made_once"]

settings.register_profile("all", deadline=None)  # nothing here is about how long it takes
settings.load_profile("all")

REQUIRE_ALL = "REQUIRE_ALL_TESTS"
"""Where this environment variable is 1, a test that would be left out fails instead."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--plugin-dir",
        default=None,
        help="run the golden decisions against the .wasm files in this folder",
    )
    parser.addoption(
        "--wasm-calls",
        choices=("fast", "public"),
        default="fast",
        help="call guests through wasmtime's C API, or through its Python classes",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Routers under test keep what they keep on disk in a folder of the run's own."""
    folder = Path(tempfile.mkdtemp(prefix="sgl-router-tests-"))
    config.add_cleanup(partial(shutil.rmtree, folder, ignore_errors=True))
    for variable in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        os.environ[variable] = str(folder / variable)


LONG = ("test_tutorials.py", "test_agreement.py", "test_templates.py", "test_languages.py")
"""A minute and more each: begun first, neither of two processes waits for the other at the end."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """By the public classes only what calls guests is run: all else would be the same again."""
    items.sort(key=lambda item: item.path.name not in LONG)
    if config.getoption("--wasm-calls") == "public":
        called = [i for i in items if "runtime_options" in getattr(i, "fixturenames", ())]
        config.hook.pytest_deselected(items=[item for item in items if item not in set(called)])
        items[:] = called


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, object]]:
    """The loop that the router runs on."""
    return "asyncio", {"loop_factory": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def llama_engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LlamaServer]]:
    """Two llama.cpp servers with one model, so that they answer alike."""
    try:
        server_folder()
    except ImportError:
        leave_out(
            "llama.cpp is not installed (pip install -e '.[test,engine]', needs a C++ compiler)"
        )
    folder = tmp_path_factory.mktemp("llama")
    write_model(folder / "tiny.gguf")
    with (
        LlamaServer(folder / "tiny.gguf", folder / "one.log") as one,
        LlamaServer(folder / "tiny.gguf", folder / "two.log") as two,
    ):
        yield [one, two]


def leave_out(reason: str) -> NoReturn:
    """Leave a test out because this machine lacks something; a failure where that is forbidden."""
    if os.environ.get(REQUIRE_ALL) == "1":
        pytest.fail(f"{reason}; {REQUIRE_ALL}=1 lets nothing be left out")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def rust_toolchain() -> None:
    """For tests that compile plugins; the build script chooses the toolchain itself."""
    target = "lib/rustlib/wasm32-unknown-unknown/lib"
    for rustc in ("rustc", "/usr/bin/rustc"):
        if found := shutil.which(rustc):
            root = subprocess.run(
                [found, "--print", "sysroot"], capture_output=True, text=True, check=False
            ).stdout.strip()
            if root and any((Path(root) / target).glob("*")):
                return
    leave_out("no Rust toolchain has the target wasm32-unknown-unknown")


@pytest.fixture(scope="session")
def runtime_options(request: pytest.FixtureRequest) -> RuntimeOptions:
    """Thousands of modules are compiled: not each in a process of its own."""
    public = request.config.getoption("--wasm-calls") == "public"
    return RuntimeOptions(in_child=False, calls=PublicCalls if public else Calls)


@pytest.fixture(scope="session")
def wasm_runtime(runtime_options: RuntimeOptions) -> Iterator[WasmRuntime]:
    """One engine for the instances that tests make themselves."""
    runtime = WasmRuntime(runtime_options)
    yield runtime
    runtime.close()


@pytest.fixture
def bench(
    tmp_path: Path, wasm_runtime: WasmRuntime, runtime_options: RuntimeOptions
) -> Iterator[Bench]:
    factory = PolicyFactory(runtime=runtime_options)
    yield Bench(tmp_path, wasm_runtime, factory)
    factory.close()
