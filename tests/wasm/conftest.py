"""What the tests of plugins share besides `tests/conftest.py`."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sgl_router.policies import PolicyFactory
from sgl_router.wasm.runtime import RuntimeOptions
from tests.conftest import leave_out
from tests.wasm.python_component import build, builder


@pytest.fixture
def no_collector() -> Iterator[None]:
    """What is freed is freed by its last reference."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(scope="session")
def python_component(request: pytest.FixtureRequest) -> bytes:
    """See `tests.wasm.python_component`."""
    command = builder()
    if command is None:
        leave_out("componentize-py is not installed (pip install -e '.[kit]')")
    return build(command, component_cache(request))


@pytest.fixture(scope="session")
def python_bench(
    request: pytest.FixtureRequest, runtime_options: RuntimeOptions
) -> Iterator[PolicyFactory]:
    """Loads plugins whose compiled code is kept between runs."""
    factory = PolicyFactory(
        runtime=replace(runtime_options, in_child=True, cache_folder=component_cache(request))
    )
    yield factory
    factory.close()


def component_cache(request: pytest.FixtureRequest) -> Path:
    cache = request.config.cache
    assert cache is not None, "pytest's own plugin"
    return Path(cache.mkdir("components"))
