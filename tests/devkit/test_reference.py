"""The references of the templates' policies: against the built-in policy, the shipped plugins, the
golden decisions, and what is known of the policies."""

from collections import Counter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sgl_router.devkit
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.policies import shipped_plugins
from sgl_router.policies.least_load import LeastLoad
from tests.conftest import leave_out
from tests.devkit.inputs import URLS, generated
from tests.devkit.reference import POLICIES, fmix64, fnv1a64, lmetric, sticky_session
from tests.wasm.guests import Bench, request

TEMPLATES = Path(sgl_router.devkit.__file__).parent / "templates"
EXAMPLES = Path(__file__).parents[2] / "examples" / "wasm_plugins"
GOLDEN = sorted(
    golden
    for policy in POLICIES
    for folder in (TEMPLATES / "shared", EXAMPLES)
    for golden in (folder / policy / "tests").glob("*.json")
)
COUNT = 2_000


def name_of(golden: Path) -> str:
    policy = golden.parent.parent
    return f"{policy.parent.name}/{policy.name}/{golden.stem}"


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_a_golden_decision(golden: Path) -> None:
    case: dict[str, Any] = orjson.loads(golden.read_bytes())
    answer = POLICIES[golden.parent.parent.name](case["input"])
    for key, expected in case["output"].items():
        if key == "error" and expected is True:
            assert isinstance(answer["error"], str), case["description"]
        else:
            assert answer[key] == expected, case["description"]


def test_every_policy_has_golden_decisions() -> None:
    for policy in POLICIES:
        assert any((TEMPLATES / "shared" / policy / "tests").glob("*.json")), policy


def test_least_connections_decides_as_the_builtin_policy_does() -> None:
    for case in generated(1, COUNT, "least_connections"):
        expected = POLICIES["least_connections"](case)["selected_worker"]
        registry = WorkerRegistry()
        for given_worker in case["workers"]:
            up = Health.UP if given_worker["healthy"] else Health.DOWN
            worker = Worker(given_worker["url"], up)
            worker.load = given_worker["load"]
            registry.add(worker)
        view = registry.view()
        if not view.eligible:  # a policy is not asked then
            assert expected is None
            continue
        asked = request(entropy=case["entropy"], now_ms=case["now_ms"])
        assert LeastLoad().select_worker(view, asked) == expected, case


@pytest.mark.parametrize("policy", ["least_connections", "weighted_random"])
def test_a_shipped_plugin_decides_as_the_reference_does(policy: str, bench: Bench) -> None:
    if policy not in shipped_plugins():
        leave_out(f"{policy} does not come with the package")
    instance = bench.instance(shipped_plugins()[policy].read_bytes())
    for case in generated(2, COUNT, policy):
        result = instance.select_worker(orjson.dumps(case), case["now_ms"], case["entropy"])
        answer, expected = orjson.loads(result), POLICIES[policy](case)
        assert answer["selected_worker"] == expected["selected_worker"], case
        assert (answer["error"] is None) == (expected["error"] is None), case


def test_the_hashes_are_those_of_their_authors() -> None:
    # draft-eastlake-fnv, appendix C
    assert fnv1a64(b"") == 0xCBF29CE484222325
    assert fnv1a64(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a64(b"foobar") == 0x85944171F73967E8
    # from `fmix64` of MurmurHash3.cpp
    assert fmix64(0) == 0
    assert fmix64(1) == 0xB456BCFC34C2CB2C
    assert fmix64((1 << 64) - 1) == 0x64B5720B4B825F21


@given(session=st.text(min_size=1), urls=st.sets(st.sampled_from(URLS), min_size=2), gone=st.data())
def test_a_session_moves_only_with_its_worker(
    session: str, urls: set[str], gone: st.DataObject
) -> None:
    def chosen(names: list[str]) -> str | None:
        workers = [{"url": url, "healthy": True, "load": 0} for url in names]
        case = {"workers": workers, "request": {"session": session}, "entropy": 0}
        index = sticky_session(case)["selected_worker"]
        return None if index is None else names[index]

    names = sorted(urls)
    before = chosen(names)
    left = [url for url in names if url != gone.draw(st.sampled_from(names))]
    assert chosen(left) == before or before not in left
    assert chosen(names[::-1]) == before


def test_sessions_are_spread_evenly() -> None:
    workers = [{"url": url, "healthy": True, "load": 0} for url in URLS]
    counts = Counter(
        sticky_session({"workers": workers, "request": {"session": f"user-{n}"}, "entropy": 0})[
            "selected_worker"
        ]
        for n in range(12_000)
    )
    assert set(counts) == set(range(len(URLS)))
    assert max(counts.values()) < 1_150  # 1,000 are expected, 30 their standard deviation
    assert min(counts.values()) > 850


@given(
    workers=st.lists(
        st.fixed_dictionaries(
            {
                "healthy": st.booleans(),
                "load": st.integers(0, 3),
                "pending_tokens": st.integers(0, 9),
                "prefix_match": st.integers(0, 9),
            }
        )
    ),
    prompt=st.integers(0, 9),
    entropy=st.integers(0, 2**53 - 1),
)
def test_no_worker_costs_less_than_that_of_lmetric(
    workers: list[dict[str, Any]], prompt: int, entropy: int
) -> None:
    def cost(worker: dict[str, Any]) -> int:
        prefill = worker["pending_tokens"] + max(0, prompt - worker["prefix_match"])
        return int(prefill * (worker["load"] + 1))

    case = {"workers": workers, "request": {"prompt_tokens": prompt}, "entropy": entropy}
    index = lmetric(case)["selected_worker"]
    healthy = [worker for worker in workers if worker["healthy"]]
    if index is None:
        assert not healthy
    else:
        assert workers[index]["healthy"]
        assert cost(workers[index]) == min(map(cost, healthy))


@pytest.mark.parametrize("policy", POLICIES)
def test_generated_inputs_are_the_same_each_time_and_of_many_kinds(policy: str) -> None:
    cases = generated(5, COUNT, policy)
    assert cases == generated(5, COUNT, policy) != generated(6, COUNT, policy)
    outputs = [POLICIES[policy](case) for case in cases]
    assert {output["selected_worker"] for output in outputs} == {None, *range(len(URLS))}
    assert {len(case["workers"]) for case in cases} == set(range(len(URLS) + 1))
    refused = sum(output["error"] is not None for output in outputs)
    assert 0 < refused < COUNT / 4 if policy == "weighted_random" else refused == 0
    assert len({orjson.dumps(case["config"]) for case in cases}) <= 16


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("change", [{"workers": None}, {"workers": [{}]}, {"workers": [7]}])
def test_an_input_of_another_shape_is_an_error(policy: str, change: dict[str, Any]) -> None:
    (case,) = generated(7, 1, policy)
    answer = POLICIES[policy](case | change)
    assert answer["selected_worker"] is None
    assert isinstance(answer["error"], str)
