"""A bench to load guests on."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from sgl_router.policies import PolicyFactory
from sgl_router.wasm.runtime import WasmRuntime
from tests.wasm.guests import Bench

settings.register_profile("wasm", deadline=None)  # nothing here is about how long it takes
settings.load_profile("wasm")


@pytest.fixture(scope="session")
def wasm_runtime() -> Iterator[WasmRuntime]:
    """One engine for the instances that tests make themselves."""
    runtime = WasmRuntime()
    yield runtime
    runtime.close()


@pytest.fixture
def bench(tmp_path: Path, wasm_runtime: WasmRuntime) -> Iterator[Bench]:
    factory = PolicyFactory()
    yield Bench(tmp_path, wasm_runtime, factory)
    factory.close()
