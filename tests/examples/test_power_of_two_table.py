"""The example of the table ABI chooses as the built-in policy does."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.policies import shipped_plugins
from sgl_router.policies.builtin import PowerOfTwo
from tests.wasm.guests import request
from tests.wasm.table_guests import Hosted, plain_encoder, pool

POOLS = st.lists(st.tuples(st.booleans(), st.integers(0, 3) | st.integers(0, 2**31 - 1)))
ENTROPY = st.integers(0, 2**53 - 1)


@pytest.fixture(scope="module")
def plugin() -> Hosted:
    return Hosted(shipped_plugins()["power_of_two_table"].read_bytes())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(POOLS, st.lists(ENTROPY, min_size=1, max_size=20))
def test_it_chooses_as_the_built_in_policy(
    plugin: Hosted, workers: list[tuple[bool, int]], draws: list[int]
) -> None:
    """One request after the other, each of which adds to the load of the worker chosen."""
    builtin, encoder, shown = PowerOfTwo(), plain_encoder(), pool(workers)
    for entropy in draws:
        asked = request(entropy=entropy)
        chosen = plugin.decide(encoder, shown, asked)
        if not shown.eligible:
            assert chosen is None
            return
        assert chosen == builtin.select_worker(shown, asked)
        assert chosen is not None
        worker = shown[chosen]
        worker.load = min(worker.load + 1, 2**31 - 1)
        worker.touched()
