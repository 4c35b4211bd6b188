"""What a loaded plugin is given: what its manifest asks for, as it is at the moment."""

import json
from typing import Any

import orjson
import pytest

from sgl_router.core.policy import KNOWN_NEEDS
from sgl_router.wasm.driver import Driver
from sgl_router.wasm.manifest import SECTION
from sgl_router.wasm.policy import WasmPolicy
from tests.wasm.guests import HEAP_AT, Bench, guest, request, view


def input_of(policy: WasmPolicy) -> Any:
    """What the plugin was given last: it is still where it was put."""
    instance = policy.current._guest.instance
    assert instance is not None
    driver = instance.driver
    assert type(driver) is Driver
    memory = driver._guest_memory
    left = bytes(memory.read(instance._store, HEAP_AT)).decode("utf-8", "replace")
    return json.JSONDecoder().raw_decode(left)[0]


@pytest.mark.parametrize(
    ("manifest", "needs", "keys", "about"),
    [
        (None, set(), set(), set()),
        ({"needs": ["request_text", "outcomes"]}, set(), set(), set()),
        (
            {"needs": ["pending_tokens"]},
            {"pending_tokens"},
            {"pending_tokens"},
            {"prompt_tokens"},
        ),
        ({"needs": ["prefix_match"]}, {"prefix_match"}, {"prefix_match"}, set()),
        (
            {"needs": ["engine_metrics"]},
            {"engine_metrics"},
            {"queued", "running", "kv_usage", "metrics_age_ms"},
            set(),
        ),
        (
            {"needs": ["worker_info"]},
            {"worker_info"},
            {"id", "weight", "labels", "ttft_ms"},
            set(),
        ),
    ],
)
async def test_what_a_manifest_asks_for_is_known_and_sent(
    bench: Bench,
    manifest: dict[str, object] | None,
    needs: set[str],
    keys: set[str],
    about: set[str],
) -> None:
    """`needs` is what the router has to know for it; the body always, as the contract has it."""
    sections = {} if manifest is None else {SECTION: orjson.dumps(manifest)}
    policy = await bench.policy(guest(sections=sections))
    assert policy.needs == {"body"} | needs
    assert policy.needs <= KNOWN_NEEDS
    policy.select_worker(view(True, False, True), request())
    found = input_of(policy)
    assert [set(worker) for worker in found["workers"]] == [{"url", "healthy", "load"} | keys] * 3
    assert set(found["request"]) == about | {
        *("id", "path", "model", "stream", "session", "attempt", "text_bytes")
    }


@pytest.mark.parametrize("wanted", [False, True])
async def test_the_text_is_sent_where_it_is_asked_for(bench: Bench, wanted: bool) -> None:
    sections = {SECTION: orjson.dumps({"needs": ["request_text"] if wanted else []})}
    policy = await bench.policy(guest(sections=sections))
    policy.select_worker(view(True), request(b'{"prompt": "Hello", "model": "m"}'))
    found = input_of(policy)
    assert found["request_text"] == ("Hello" if wanted else None)
    assert found["request"]["text_bytes"] == 5
    assert found["request"]["model"] == "m"


async def test_loads_are_those_of_the_moment(bench: Bench) -> None:
    policy = await bench.policy(guest())
    workers = view(True, True)
    for load in (0, 3, 12_345, 2):
        workers[1].load = load
        policy.select_worker(workers, request())
        assert [worker["load"] for worker in input_of(policy)["workers"]] == [0, load]


async def test_a_plugin_that_does_not_read_the_body_is_told_nothing_of_it(bench: Bench) -> None:
    sections = {SECTION: orjson.dumps({"needs": [], "reads_body": False})}
    policy = await bench.policy(guest(sections=sections))
    assert policy.needs == frozenset()
    asked = request(b'{"prompt": "Hello", "model": "m", "stream": true, "user": "u"}')
    asked.routing_key = "key"
    policy.select_worker(view(True), asked)
    found = input_of(policy)
    assert found["request_text"] is None
    about = {key: found["request"][key] for key in ("model", "stream", "session", "text_bytes")}
    assert about == {"model": None, "stream": False, "session": "key", "text_bytes": 0}
