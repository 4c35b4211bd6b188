"""What the kit's templates build keeps the contract and passes its golden decisions."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from sgl_router.devkit.languages import LANGUAGES
from sgl_router.testing import (
    PluginHost,
    check_conformance,
    golden_folder,
    load_golden,
    run_golden,
    settings_for,
)
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.devkit.built import built

POLICIES = ("sticky_session", "lmetric")
"""One that reads the body, and one that asks for all the numbers that it can get."""

COMPONENTS = ("python",)
"""They take long to compile: one is enough to see what all of them have in common."""

BUILT = [
    (language.name, policy)
    for language in LANGUAGES
    for policy in POLICIES
    if language.name not in COMPONENTS or policy == POLICIES[-1]
]


@pytest.fixture(scope="module")
def compiled(
    runtime_options: RuntimeOptions, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[WasmRuntime]:
    """An engine whose compiled modules are kept, so that each is compiled once."""
    kept = tmp_path_factory.mktemp("kept")
    runtime = WasmRuntime(RuntimeOptions(cache_folder=kept, calls=runtime_options.calls))
    yield runtime
    runtime.close()


def settings_of(module: Path) -> WasmPolicyConfig:
    """Those of its project, for machines under load."""
    return settings_for(module, {"max_execution_time_ms": 10_000})


@pytest.mark.parametrize(("language", "policy"), BUILT)
def test_a_template_conforms(language: str, policy: str, compiled: WasmRuntime) -> None:
    module = built(language, policy)
    report = check_conformance(
        module, settings=settings_of(module), host=partial(PluginHost, runtime=compiled)
    )
    assert report.conforms, str(report)


@pytest.mark.parametrize(("language", "policy"), BUILT)
def test_a_templates_golden_decisions(language: str, policy: str, compiled: WasmRuntime) -> None:
    module = built(language, policy)
    host = PluginHost(module, settings_of(module), compiled)
    results = [run_golden(host, golden) for golden in load_golden(golden_folder(module))]
    assert results, "there are some"
    failed = {one.golden.name: one.problems for one in results if one.outcome == "failed"}
    assert not failed
    assert any(one.outcome == "passed" for one in results)
