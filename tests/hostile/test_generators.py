"""What nobody has thought of: generated plugins, damaged ones, and any bytes as a result.

(a) random valid modules, (b) flips and truncations of each shipped plugin, (c) any result.
"""

import json
from collections import Counter
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sgl_router.core.worker import Health
from sgl_router.errors import PluginRefused, RequestError
from sgl_router.policies import shipped_plugins
from sgl_router.wasm.policy import WasmPolicy
from tests.hostile.modules import GOOD, LONG, SHORT, parrot, say
from tests.hostile.outcomes import HOSTILE, NEIGHBOUR, Memory, Stand, neighbour_in, stand
from tests.hostile.random_modules import random_plugin
from tests.wasm.guests import Bench

CALLS = 100
MOST_TIMEOUTS = 2
"""A plugin that is slow once is slow a hundred times: the rest would only take time."""

KINDS = {
    "trap",
    "timeout",
    "out_of_memory",
    "bad_output",
    "out_of_range",
    "unhealthy_pick",
    "plugin_error",
    "quarantined",
}
PLUGINS = sorted(shipped_plugins().items())
BENCH_STAYS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def served(seat: Stand, body: bytes) -> str:
    """One request, which must come to a worker that may be picked, or to a 503; what became of it.

    `dispatch` itself asserts that loads add up.
    """
    try:
        decision = seat.dispatch(body)
    except RequestError as error:
        assert error.status == 503
        return "none"
    assert decision.worker.available
    if decision.failure is None:
        return "decided"
    assert decision.failure.kind in KINDS
    assert decision.policy.name == "fallback"
    assert decision.failure.detail.isprintable()
    return decision.failure.kind


async def loaded(bench: Bench, wasm: bytes, neighbour: Stand, **limits: int) -> Stand | None:
    """A stand with this plugin, or None where it is refused in words."""
    try:
        policy = await bench.policy(wasm, HOSTILE, **limits)
    except PluginRefused as refusal:
        assert refusal.plugin == HOSTILE
        assert str(refusal).isprintable()
        return None
    return Stand(policy, neighbour.plugin)


async def lives_through(bench: Bench, wasm: bytes, calls: int) -> Counter[str]:
    """Load a plugin, ask it so often, and unload it: what became of each request."""
    policy = await neighbour_in(bench)
    neighbour = Stand(policy, policy)
    seat = await loaded(bench, wasm, neighbour, max_execution_time_ms=20)
    found: Counter[str] = Counter()
    if seat is None:
        found["refused"] += 1
    else:
        for number in range(calls):
            found[served(seat, LONG if number % 2 else SHORT)] += 1
            if found["timeout"] >= MOST_TIMEOUTS:
                break
        assert bench.factory.unload_wasm_plugin(HOSTILE)
    neighbour.spares_its_neighbour()
    return found


@settings(max_examples=200, suppress_health_check=BENCH_STAYS)
@given(st.integers(0, 2**32 - 1))
async def test_generator_a_random_valid_modules(bench: Bench, seed: int) -> None:
    """(a) It is refused in words, or each request finds a worker; and the others never notice."""
    await lives_through(bench, random_plugin(seed), CALLS)


async def test_generator_a_does_a_bit_of_everything(bench: Bench) -> None:
    """Else the generator is worth nothing; and what they had of memory has come back."""
    found = await lives_through(bench, random_plugin(0), CALLS)
    before = Memory.now()
    for seed in range(1, 40):
        found += await lives_through(bench, random_plugin(seed), CALLS)
    assert {"refused", "decided", "trap", "timeout"} <= found.keys()
    assert found["refused"] < 20, "most are asked, too"
    before.returned()


Damage = Callable[[bytes, Random], bytes]


def flipped(wasm: bytes, random: Random) -> bytes:
    """With a byte or some changed: of what describes it, of its code, or of its data at the end."""
    damaged = bytearray(wasm)
    size = len(wasm)
    for _ in range(random.choice([1, 1, 2, 4])):
        start, end = random.choice([(8, min(300, size)), (8, size), (size * 3 // 4, size)])
        damaged[random.randrange(start, end)] = random.randrange(256)
    return bytes(damaged)


def cut(wasm: bytes, random: Random) -> bytes:
    return wasm[: random.randrange(len(wasm))]


@pytest.mark.parametrize("name", [name for name, _ in PLUGINS])
@pytest.mark.parametrize(("damage", "times"), [(flipped, 30), (cut, 40)], ids=["flips", "cuts"])
async def test_generator_b_damaged_plugins(
    bench: Bench, name: str, damage: Damage, times: int
) -> None:
    """(b) It is refused in words, or decides, or fails."""
    wasm = dict(PLUGINS)[name].read_bytes()
    found: Counter[str] = Counter()
    for seed in range(times):
        found += await lives_through(bench, damage(wasm, Random(f"{name} {seed}")), 3)
    assert found["refused"], "some damage is seen at once"
    assert damage is cut or found["decided"], "and some is none"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=10,
)
_ANSWERS = st.fixed_dictionaries(
    {},
    optional={
        "selected_worker": st.integers(-2, 5) | _JSON,
        "state": st.dictionaries(st.text(max_size=8), _JSON, max_size=4) | _JSON,
        "error": st.none() | _JSON,
        "more": _JSON,
    },
).map(json.dumps)


@st.composite
def _garbled(draw: st.DrawFn) -> bytes:
    """A sound result with some bytes of it changed."""
    result = bytearray(draw(_ANSWERS | st.just(GOOD)).encode())
    for at in draw(st.lists(st.integers(0, len(result) - 1), max_size=3)):
        result[at] = draw(st.integers(0, 255))
    return bytes(result)


RESULTS = st.binary(max_size=300) | _ANSWERS.map(str.encode) | _garbled()


async def parrot_in(bench: Bench) -> Stand:
    """A stand with a parrot, which is loaded once for many results."""
    found = bench.factory.create_by_name(HOSTILE)
    if found is None:
        return await stand(bench, parrot(), max_request_text_bytes=100_000)
    assert isinstance(found, WasmPolicy)
    return Stand(found, await neighbour_in(bench))


@settings(max_examples=500, suppress_health_check=BENCH_STAYS)
@given(RESULTS, st.sets(st.sampled_from([0, 1])))
@example(b"", {0, 1})
@example(b'{"selected_worker": 0}', {0})
async def test_generator_c_any_result(bench: Bench, result: bytes, down: set[int]) -> None:
    """(c) It yields a worker that may be picked, none at all, or a failure that has a name."""
    seat = await parrot_in(bench)
    became = judged(seat, result, down)
    if became == "quarantined":  # by the results before
        bench.factory.unload_wasm_plugin(HOSTILE)
        bench.factory.unload_wasm_plugin(NEIGHBOUR)
        became = judged(await parrot_in(bench), result, down)
    assert became in {"decided", "none", "bad_output", "out_of_range", "unhealthy_pick"} | {
        "plugin_error"
    }


def judged(seat: Stand, result: bytes, down: set[int]) -> str:
    for index in down:
        seat.router.registry.set_health(seat.router.workers[index], Health.DOWN)
    became = served(seat, say(result))
    seat.spares_its_neighbour()
    return became
