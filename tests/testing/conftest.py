"""What the tests of the kit's checks share."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_router.testing import PluginHost, settings_for
from sgl_router.testing.conformance import HostMaker
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.runtime import WasmRuntime


@pytest.fixture
def hosted(wasm_runtime: WasmRuntime) -> HostMaker:
    """Hosts plugins in the engine that all tests share."""
    return lambda wasm, config: PluginHost(wasm, config, wasm_runtime)


@pytest.fixture
def host_of(wasm_runtime: WasmRuntime) -> Callable[..., PluginHost]:
    """The host of a module with settings."""

    def made(wasm: bytes, **settings: object) -> PluginHost:
        return PluginHost(wasm, patient(settings), wasm_runtime)

    return made


def patient(settings: dict[str, object]) -> WasmPolicyConfig:
    """Settings for machines under load."""
    return settings_for(Path("plugin.wasm"), {"max_execution_time_ms": 5_000, **settings})
