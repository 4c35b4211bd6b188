"""Policies by name: built in, plugged in, and the plugins that are shipped."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType

import pytest

from sgl_router.core.policy import Policy
from sgl_router.core.prefix_index import PrefixIndex
from sgl_router.core.worker import EngineMetrics
from sgl_router.errors import PluginRefused
from sgl_router.policies import (
    BUILTIN_POLICIES,
    PolicyFactory,
    PolicyOptions,
    WasmPolicyConfig,
    shipped_plugins,
)
from tests.policies.pools import NOW_MS, ask, view_of

SHIPPED = ["least_connections", "power_of_two_table", "weighted_random"]


@pytest.fixture
def factory() -> Iterator[PolicyFactory]:
    made = PolicyFactory()
    yield made
    made.close()


def shipped(name: str, config: Mapping[str, object] = MappingProxyType({})) -> WasmPolicyConfig:
    return WasmPolicyConfig(str(shipped_plugins()[name]), name, config=config)


@pytest.mark.parametrize("policy_type", BUILTIN_POLICIES, ids=lambda p: p.name)
def test_a_builtin_policy_is_made_anew_by_each_call(
    factory: PolicyFactory, policy_type: type[Policy]
) -> None:
    one = factory.create_by_name(policy_type.name)
    other = factory.create_by_name(policy_type.name)
    assert type(one) is type(other) is policy_type
    assert one is not other


def test_the_defaults_of_the_settings() -> None:
    assert PolicyOptions() == PolicyOptions(
        cache_threshold=0.3,
        balance_abs_threshold=64,
        balance_rel_threshold=1.5,
        max_idle_secs=14_400.0,
        engine_metrics_interval_secs=1.0,
    )


def made(name: str, options: PolicyOptions | None = None) -> Policy:
    policy = PolicyFactory(options).create_by_name(name)
    assert policy is not None
    return policy


@pytest.mark.parametrize(
    ("options", "load", "known", "stays"),
    [
        (None, 64, 31, True),
        (None, 64, 30, False),
        (PolicyOptions(cache_threshold=0.5), 64, 50, False),
        (PolicyOptions(balance_abs_threshold=10), 64, 31, False),
        (None, 130, 31, False),  # the mean is 65
        (PolicyOptions(balance_abs_threshold=10, balance_rel_threshold=2.5), 130, 31, True),
    ],
)
def test_cache_aware_is_made_by_the_settings(
    options: PolicyOptions | None, load: int, known: int, stays: bool
) -> None:
    view, index = view_of([load, 0]), PrefixIndex()
    index.insert(view.pool, "x" * 100, view[0])
    text = "x" * known + "y" * (100 - known)
    prefix = index.match(view.pool, text)
    chosen = ask(made("cache_aware", options), view, text=text, prefix=prefix)
    assert chosen == (0 if stays else 1)


@pytest.mark.parametrize(("options", "secs"), [(None, 14_400), (PolicyOptions(max_idle_secs=5), 5)])
def test_manual_is_made_by_the_settings(options: PolicyOptions | None, secs: int) -> None:
    for late, stays in ((0, True), (1, False)):
        policy, view = made("manual", options), view_of([0, 0])
        assert ask(policy, view, 0, key="key") == 0
        later = ask(policy, view, 1, key="key", now_ms=NOW_MS + secs * 1000 + late)
        assert (later == 0) is stays


@pytest.mark.parametrize("name", ["power_of_two", "least_load"])
@pytest.mark.parametrize(("interval", "fresh_ms"), [(0.1, 5_000), (1.0, 5_000), (20.0, 60_000)])
def test_metrics_are_used_for_as_long_as_they_are_polled(
    name: str, interval: float, fresh_ms: int
) -> None:
    policy = made(name, PolicyOptions(engine_metrics_interval_secs=interval))
    for late, used in ((-1, True), (0, False)):
        view = view_of([1, 0])
        for worker, queued in zip(view, (0, 9), strict=True):
            worker.metrics = EngineMetrics(queued, 0, None, NOW_MS)
        assert ask(policy, view, 0, now_ms=NOW_MS + fresh_ms + late) == (0 if used else 1)


@pytest.mark.parametrize("name", ["", "unknown", "wasm:", "wasm:unknown", "Random", "wasm:random"])
def test_an_unknown_name_is_none(factory: PolicyFactory, name: str) -> None:
    assert factory.create_by_name(name) is None


def test_a_new_factory_has_the_builtins_and_no_plugin(factory: PolicyFactory) -> None:
    assert factory.list_builtin_policies() == [policy.name for policy in BUILTIN_POLICIES]
    assert factory.list_wasm_plugins() == []
    assert not factory.unload_wasm_plugin("unknown")
    assert not factory.unload_wasm_plugin("random")


def test_what_is_shipped() -> None:
    plugins = shipped_plugins()
    assert list(plugins) == SHIPPED
    assert all(path.is_file() for path in plugins.values())


async def test_load_list_unload(factory: PolicyFactory) -> None:
    for name in reversed(SHIPPED):
        await factory.load_wasm_plugin(shipped(name))
    assert factory.list_wasm_plugins() == list(reversed(SHIPPED))
    policy = factory.create_by_name("weighted_random")
    assert policy is not None
    assert factory.create_by_name("wasm:weighted_random") is policy
    assert factory.unload_wasm_plugin("weighted_random")
    assert not factory.unload_wasm_plugin("weighted_random")
    assert factory.create_by_name("weighted_random") is None
    assert factory.list_wasm_plugins() == ["power_of_two_table", "least_connections"]


async def test_a_plugin_cannot_take_the_name_of_a_builtin(factory: PolicyFactory) -> None:
    path = str(shipped_plugins()["least_connections"])
    with pytest.raises(PluginRefused):
        await factory.load_wasm_plugin(WasmPolicyConfig(path, "random"))
    assert factory.list_wasm_plugins() == []
    assert type(factory.create_by_name("random")) is BUILTIN_POLICIES[0]


async def test_a_refused_plugin_leaves_nothing_and_can_be_loaded_later(
    factory: PolicyFactory,
) -> None:
    with pytest.raises(PluginRefused):
        await factory.load_wasm_plugin(shipped("least_connections", config={"no": "such option"}))
    assert factory.list_wasm_plugins() == []
    await factory.load_wasm_plugin(shipped("least_connections"))
    assert factory.list_wasm_plugins() == ["least_connections"]


async def test_least_connections_decides_with_its_defaults(factory: PolicyFactory) -> None:
    await factory.load_wasm_plugin(shipped("least_connections"))
    policy = factory.create_by_name("least_connections")
    assert policy is not None and policy.fallback in factory.list_builtin_policies()
    assert ask(policy, view_of([3, 0, 1, 2], down=[1]), entropy=2**52) == 2
    tied = view_of([4, 1, 1])
    assert {ask(policy, tied, entropy) for entropy in (0, 1, 2**52, 2**53 - 1)} == {1, 2}


async def test_weighted_random_decides_with_its_defaults(factory: PolicyFactory) -> None:
    await factory.load_wasm_plugin(shipped("weighted_random"))
    policy = factory.create_by_name("weighted_random")
    assert policy is not None
    view = view_of([0, 0, 0, 0], down=[2])
    sixths = [2**53 // 6 * i for i in (1, 3, 5)]  # the middles of three equal shares
    assert [ask(policy, view, entropy) for entropy in sixths] == [0, 1, 3]


@pytest.mark.parametrize("name", SHIPPED)
async def test_a_shipped_plugin_decides_alike_for_the_same_entropy(
    factory: PolicyFactory, name: str
) -> None:
    await factory.load_wasm_plugin(shipped(name))
    policy = factory.create_by_name(name)
    assert policy is not None
    view = view_of([2, 2, 5, 2], down=[3])
    for entropy in (0, 1, 2**30, 2**52 + 1, 2**53 - 1):
        assert ask(policy, view, entropy) == ask(policy, view, entropy)
        assert ask(policy, view, entropy) in view.eligible
