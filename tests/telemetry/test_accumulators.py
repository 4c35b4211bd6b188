"""`Tally`: counts by names that nobody knows beforehand."""

from sgl_router.telemetry.accumulators import MAX_VALUES, Tally
from sgl_router.telemetry.catalogue import OTHER


def test_what_is_known_keeps_its_name_when_there_is_no_room_for_more() -> None:
    tally, names = Tally(), [f"name {n}" for n in range(MAX_VALUES)]
    for name in (*names, "one more", *names, "and another"):
        tally.add(name)
    assert tally.counts == {**dict.fromkeys(names, 2), OTHER: 2}
