"""One policy, written in each language of the kit, decides the same on thousands of inputs.

All are asked as a router asks them: about workers in a registry, for a request.
"""

import os
import runpy
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import read_project
from sgl_router.devkit.scaffold import TEMPLATES
from sgl_router.errors import DecisionError
from sgl_router.policies import shipped_plugins
from sgl_router.policies.least_load import LeastLoad
from sgl_router.testing.case import DecisionCase
from sgl_router.testing.host import PluginHost
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from tests.devkit.built import built
from tests.devkit.inputs import generated
from tests.devkit.reference import POLICIES

INPUTS = 10_000
SEED = 20_260_731

AS_COMPONENTS = ("least_connections", "lmetric")
"""Of Python's policies: to build and compile one takes half a minute of CPU. The others are run as
they stand; what carries them to the router is the same."""

Decided = int | None | str
"""A worker's index, none, or how the decision failed."""


@lru_cache(maxsize=1)  # a policy's tests follow one another, and the cases take their room
def cases(policy: str) -> list[tuple[DecisionCase, Decided]]:
    """Cases and what the policy's reference decides, those of one configuration side by side."""
    inputs = generated(SEED, INPUTS, policy)
    inputs.sort(key=lambda given: orjson.dumps(given["config"]))
    return [(DecisionCase.from_input(given), expected(policy, given)) for given in inputs]


def expected(policy: str, given: Mapping[str, Any]) -> Decided:
    output = POLICIES[policy](dict(given))
    index: int | None = output["selected_worker"]
    return index if output["error"] is None else "plugin_error"


@pytest.fixture
def runtime(
    runtime_options: RuntimeOptions, request: pytest.FixtureRequest
) -> Iterator[WasmRuntime]:
    """Compiled modules are kept from one run to the next: Python's take many seconds.

    Each language's for themselves, since Python's alone nearly fill what a cache holds.
    """
    called = getattr(request.node, "callspec", None)
    language = called.params["language"] if called is not None else "shipped"
    folder = Path(tempfile.gettempdir()) / f"sgl-router-kit-{os.geteuid()}" / "compiled" / language
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    own = WasmRuntime(replace(runtime_options, in_child=True, cache_folder=folder))
    yield own
    own.close()


def decisions(host: PluginHost, policy: str) -> Iterator[tuple[DecisionCase, Decided, Decided]]:
    """What a plugin decides, beside what it is to decide."""
    config: Mapping[str, Any] | None = None
    refused: Decided = None
    for case, reference in cases(policy):
        if config != case.config:
            config, refused = case.config, None
            try:
                host.start(config)
            except DecisionError as error:  # a component is told its configuration at its start
                refused = error.kind
        if refused is not None:
            yield case, refused, reference
            continue
        answer = host.decide(case)
        failure = answer.failure
        yield case, answer.selected_worker if failure is None else failure.kind, reference


def check(host: PluginHost, policy: str) -> None:
    """Fails with the first input on which a plugin decides otherwise."""
    for case, found, reference in decisions(host, policy):
        assert found == reference, orjson.dumps(case.given).decode()


# ---- the inputs


@pytest.mark.parametrize("policy", POLICIES)
def test_the_inputs_reach_every_kind_of_decision(policy: str) -> None:
    """Agreement says something only where there is something to disagree on."""
    reached = {reference for _, reference in cases(policy)}
    assert {None, *range(12)} <= reached
    assert ("plugin_error" in reached) == (policy == "weighted_random")
    assert not [case.malformed for case, _ in cases(policy) if case.malformed]


# ---- those who decide


@pytest.mark.parametrize(
    ("policy", "language"),
    [
        (policy, language.name)
        for policy in POLICIES
        for language in LANGUAGES
        if language.name != "python" or policy in AS_COMPONENTS
    ],
)
def test_a_template_decides_as_the_reference(
    language: str, policy: str, runtime: WasmRuntime
) -> None:
    module = built(language, policy)
    settings = read_project(module.parent.parent).config()
    # Here no more than the answers counts, on a machine under any load.
    settings = replace(settings, max_execution_time_ms=10_000)
    with PluginHost(module, settings, runtime) as host:
        check(host, policy)


@pytest.mark.parametrize("policy", sorted(POLICIES.keys() - set(AS_COMPONENTS)))
def test_a_policy_in_python_decides_as_the_reference(
    policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = TEMPLATES / "python"
    monkeypatch.syspath_prepend(str(folder))  # for its module `contract`
    choose = runpy.run_path(str(folder / "policies" / policy / "policy.py"))["choose"]
    for case, reference in cases(policy):
        try:
            assert case.given is not None
            found = choose(_typed(case.given))
        except ValueError:
            found = "plugin_error"
        assert found == reference, orjson.dumps(case.given).decode()


def _typed(given: Mapping[str, Any]) -> SimpleNamespace:
    """An input with attributes, as a component is given it."""
    return SimpleNamespace(
        workers=[SimpleNamespace(**worker) for worker in given["workers"]],
        request=SimpleNamespace(**{"session": None, **given["request"]}),
        config=given["config"],
        entropy=given["entropy"],
    )


def test_the_plugin_that_is_shipped_decides_as_the_reference(runtime: WasmRuntime) -> None:
    shipped = shipped_plugins()["least_connections"]
    settings = WasmPolicyConfig(str(shipped), "shipped", max_execution_time_ms=10_000)
    with PluginHost(shipped, settings, runtime) as host:
        check(host, "least_connections")


def test_the_built_in_policy_decides_as_the_reference() -> None:
    policy = LeastLoad()
    for case, reference in cases("least_connections"):
        if not case.workers.eligible:
            continue  # a built-in policy is asked only where there is a choice
        found = policy.select_worker(case.workers, case.request)
        assert found == reference, orjson.dumps(case.given).decode()
