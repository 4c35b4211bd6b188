"""A component written in Python, built with its own tools: the whole way."""

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from sgl_router.core.policy import Outcome
from sgl_router.core.prefix_index import PrefixMatch
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import EngineMetrics, Health, Worker
from sgl_router.errors import DecisionError, PluginRefused
from sgl_router.policies import PolicyFactory, WasmPolicyConfig
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import request, settled
from tests.wasm.python_component import MEMORY_BYTES

OUTCOME = Outcome("http://10.0.0.1:1", False, 503, 81.25, 913.5, 64, "it answered 503")


@pytest.fixture
async def python_policy(
    python_bench: PolicyFactory, python_component: bytes, tmp_path: Path
) -> AsyncIterator[WasmPolicy]:
    """It is loaded as a user would load it, and decides where it is asked."""
    yield await loaded(python_bench, python_component, tmp_path, config={"a": [1, "ü"]})
    python_bench.unload_wasm_plugin("python")


async def loaded(factory: PolicyFactory, wasm: bytes, folder: Path, **settings: Any) -> WasmPolicy:
    path = folder / "python.wasm"
    path.write_bytes(wasm)
    limits = {"max_memory_bytes": MEMORY_BYTES, "max_execution_time_ms": 10_000}
    await factory.load_wasm_plugin(WasmPolicyConfig(str(path), "python", **{**limits, **settings}))
    policy = factory.create_by_name("python")
    assert isinstance(policy, WasmPolicy)
    return policy


def two_workers() -> WorkerView:
    registry = WorkerRegistry()
    labels = {"zone": "a", "gpu": "h100 ü"}
    registry.add(Worker("http://10.0.0.1:1", Health.UP, labels=labels, weight=2.5))
    registry.add(Worker("http://10.0.0.2:1", Health.DOWN))
    one, two = registry.view()
    one.load, two.load = 3, 4
    one.pending_tokens = 2**33
    one.metrics = EngineMetrics(5, 6, 0.25, 1_000)
    one.ttft_ms = 12.5
    return registry.view()


def asked(workers: WorkerView, text: str = "hello wörld") -> RequestView:
    made = request(entropy=2**53 - 1, now_ms=1_500)
    made._json = {"prompt": text, "model": "llama", "user": "u42", "stream": True}
    held = {workers[0]: 400}
    made.prefix = _Match(held)
    return made


class _Match(PrefixMatch):
    """What the workers hold, in characters."""

    def __init__(self, held: dict[Worker, int]) -> None:
        self._held = held

    def of(self, worker: Worker) -> int:
        return self._held.get(worker, 0)


def told(policy: WasmPolicy) -> Any:
    return policy.current._guest.contract.state.values["told"]


async def test_it_is_told_everything(python_policy: WasmPolicy) -> None:
    workers = two_workers()
    assert await settled(python_policy.choose(workers, asked(workers))) == 0
    assert python_policy.current.offloaded
    input = told(python_policy)
    assert input["request"] == {
        "id": "req-1",
        "path": "/v1/chat/completions",
        "model": "llama",
        "stream": True,
        "session": "u42",
        "attempt": 0,
        "text_bytes": 12,
        "prompt_tokens": 2,
    }
    assert input["request_text"] == "hello wörld"
    assert (input["now_ms"], input["entropy"]) == (1_500, 2**53 - 1)
    one, two = input["workers"]
    assert one == {
        "url": "http://10.0.0.1:1",
        "healthy": True,
        "load": 3,
        "pending_tokens": 2**33,
        "prefix_match": 100,
        "engine_metrics": {
            "queued": 5,
            "running": 6,
            "kv_usage": 0.25,
            "metrics_age_ms": 500,
        },
        "worker_info": {
            "id": workers[0].id,
            "weight": 2.5,
            "labels": [["zone", "a"], ["gpu", "h100 ü"]],
            "ttft_ms": 12.5,
        },
    }
    assert two == {
        "url": "http://10.0.0.2:1",
        "healthy": False,
        "load": 4,
        "pending_tokens": 0,
        "prefix_match": 0,
        "engine_metrics": None,
        "worker_info": {"id": workers[1].id, "weight": 1.0, "labels": [], "ttft_ms": None},
    }
    assert python_policy.current._guest.contract.state.values["config"] == {"a": [1, "ü"]}


async def test_what_was_there_once_is_not_there_again(python_policy: WasmPolicy) -> None:
    """Options become empty as well as full."""
    workers = two_workers()
    given = asked(workers)
    for metrics, ttft_ms, body in (
        (EngineMetrics(1, 2, None, 0), 1.5, {"prompt": "x"}),
        (None, None, {}),
        (EngineMetrics(1, 2, 0.5, 0), 2.5, {"prompt": "y", "model": "m"}),
    ):
        workers[0].metrics, workers[0].ttft_ms = metrics, ttft_ms
        given = asked(workers)
        given._json = body
        assert await settled(python_policy.choose(workers, given)) == 0
        input = told(python_policy)
        one = input["workers"][0]
        assert (one["engine_metrics"] is None) == (metrics is None)
        assert one["worker_info"]["ttft_ms"] == ttft_ms
        if metrics is not None:
            assert one["engine_metrics"]["kv_usage"] == metrics.kv_usage
        assert input["request_text"] == body.get("prompt")
        assert input["request"]["model"] == body.get("model")


async def test_its_state_comes_back_to_it(python_policy: WasmPolicy) -> None:
    workers = two_workers()
    for turn in (1, 2, 3):
        await settled(python_policy.choose(workers, asked(workers)))
        assert python_policy.current._guest.contract.state.values["turns"] == turn


async def test_it_learns_of_outcomes(python_policy: WasmPolicy) -> None:
    workers = two_workers()
    python_policy.on_request_complete(OUTCOME)
    python_policy.on_request_complete(Outcome("http://x:1", True, None, None, 1.0, 0, None))
    await settled(python_policy.choose(workers, asked(workers)))
    one, two = python_policy.current._guest.contract.state.values["outcomes"]
    expected = dataclasses.asdict(OUTCOME)
    expected["worker"] = expected.pop("worker_url")
    del expected["engine_ok"]
    assert one == expected
    assert (two["status"], two["ttft_ms"], two["error"]) == (None, None, None)


async def failed(policy: WasmPolicy, text: str) -> DecisionError:
    workers = two_workers()
    failure = await settled(policy.choose(workers, asked(workers, text)))
    assert isinstance(failure, DecisionError)
    assert await settled(policy.choose(workers, asked(workers))) == 0
    return failure


async def test_its_own_error(python_policy: WasmPolicy) -> None:
    failure = await failed(python_policy, "fail")
    assert (failure.kind, failure.detail) == ("plugin_error", "it cannot decide")
    assert python_policy.current._guest.instances == 2


@pytest.mark.parametrize("text", ["trap", "grow"])
async def test_an_exception_is_a_trap(python_policy: WasmPolicy, text: str) -> None:
    assert (await failed(python_policy, text)).kind == "trap"
    assert python_policy.current._guest.instances == 3


async def test_a_loop_ends_in_time(
    python_bench: PolicyFactory, python_component: bytes, tmp_path: Path
) -> None:
    policy = await loaded(python_bench, python_component, tmp_path, max_execution_time_ms=1_000)
    assert (await failed(policy, "loop")).kind == "timeout"
    python_bench.unload_wasm_plugin("python")


async def test_a_configuration_that_it_refuses(
    python_bench: PolicyFactory, python_component: bytes, tmp_path: Path
) -> None:
    with pytest.raises(PluginRefused, match="no such option: b") as caught:
        await loaded(
            python_bench, python_component, tmp_path, config={"refuse": "no such option: b"}
        )
    assert caught.value.codes == ("trial_plugin_error",)


async def test_less_memory_than_it_starts_with(
    python_bench: PolicyFactory, python_component: bytes, tmp_path: Path
) -> None:
    with pytest.raises(PluginRefused) as caught:
        await loaded(python_bench, python_component, tmp_path, max_memory_bytes=1_048_576)
    assert caught.value.codes == ("memory_at_start",)
