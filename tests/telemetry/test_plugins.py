"""What is shown of plugins and of a shadow run."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as openmetrics_families,
)

from sgl_router.core.shadow import ShadowReport
from sgl_router.telemetry.exposition import PIECE_SAMPLES
from sgl_router.wasm.status import PluginStatus, QuarantineStatus
from tests.admin.plugin_control import plugin, report
from tests.telemetry.bench import Bench

GAUGES = ("quarantine_state", "offloaded", "waiting_decisions", "stale", "memory_bytes")


def bench_with(*plugins: PluginStatus, shadow: ShadowReport | None = None) -> Bench:
    bench = Bench()
    bench.readings.plugins, bench.readings.shadow = [*plugins], shadow
    return bench


def of_version(status: PluginStatus, **values: Any) -> PluginStatus:
    return replace(status, current=replace(status.current, **values))


def quarantined(
    times: int, state: Literal["closed", "open", "half_open"] = "open"
) -> QuarantineStatus:
    return QuarantineStatus(state, 5, times, 0, "5 failures in a row")


# ---- plugins


def test_a_plugins_gauges() -> None:
    quiet = of_version(plugin("quiet"), memory_bytes=0)
    busy = replace(
        of_version(plugin("busy"), memory_bytes=1_114_112),
        lane="offload",
        waiting=3,
        quarantine=quarantined(1),
        stale="its file has changed and is not used",
    )
    bench = bench_with(quiet, busy)
    shown = {name: bench.values(f"plugin_{name}", "plugin") for name in GAUGES}
    assert shown == {
        "quarantine_state": {"quiet": 0, "busy": 1},
        "offloaded": {"quiet": 0, "busy": 1},
        "waiting_decisions": {"quiet": 0, "busy": 3},
        "stale": {"quiet": 0, "busy": 1},
        "memory_bytes": {"quiet": 0, "busy": 1_114_112},
    }


@pytest.mark.parametrize(("state", "number"), [("closed", 0), ("open", 1), ("half_open", 2)])
def test_quarantines_have_the_numbers_of_circuits(
    state: Literal["closed", "open", "half_open"], number: int
) -> None:
    bench = bench_with(replace(plugin("mine"), quarantine=quarantined(1, state)))
    assert bench.value("plugin_quarantine_state", plugin="mine") == number


def test_which_version_decides() -> None:
    before = of_version(plugin("mine", b"before"), plugin_version="1.0")
    bench = bench_with(before)
    (sample,) = bench.samples("plugin_info")
    assert sample.value == 1
    assert sample.labels == {"plugin": "mine", "version": "1.0", "sha256": before.current.sha256}
    after = plugin("mine", b"after")
    bench.readings.plugins = [replace(after, previous=before.current)]
    (sample,) = bench.samples("plugin_info")
    assert sample.labels == {"plugin": "mine", "version": "", "sha256": after.current.sha256}


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ['"', "\\", '\\"', "\n# EOF\n", '"} 1\nsgl_router_workers 9', "\\n", "\r", "\0", "\u2028", "{}"]
)


@given(TEXTS, TEXTS, TEXTS)
def test_any_text_is_written_so_that_it_reads_the_same(name: str, version: str, sha: str) -> None:
    """A name and a digest are checked long before; none of them is to be trusted here."""
    bench = bench_with(
        of_version(plugin(name), plugin_version=version, sha256=sha),
        shadow=report(name, 0.5, "regular"),
    )
    expected = {"plugin": name, "version": version, "sha256": sha}
    (sample,) = bench.samples("plugin_info")
    assert sample.labels == expected
    assert bench.values("plugin_swaps_total", "plugin") == {name: 0}
    assert bench.values("shadow_decisions_total", "plugin") == {name: 4}
    page, _ = bench.page("application/openmetrics-text")
    families = openmetrics_families(page.decode())  # type: ignore[no-untyped-call] # the library's
    found = [family for family in families if family.name == "sgl_router_plugin_info"]
    assert [s.labels for family in found for s in family.samples] == [expected]


def test_pieces_of_many_plugins_are_of_one_reading() -> None:
    """Between two pieces a plugin may be swapped or unloaded."""
    bench = bench_with(*(plugin(f"plugin-{n}") for n in range(PIECE_SAMPLES + 1)))
    pieces, _ = bench.telemetry.pieces("")
    page = b""
    for piece in pieces:
        assert piece.count(b"\n") <= PIECE_SAMPLES + 2
        page += piece
        if b"sgl_router_plugin_info{" in piece:
            bench.readings.plugins = []
    for name in ("info", *GAUGES, "quarantines_total", "swaps_total"):
        assert page.count(b"\nsgl_router_plugin_%b{" % name.encode()) == PIECE_SAMPLES + 1


# ---- what grows


@dataclass
class Loaded:
    """A plugin, and what truly came to pass of it."""

    status: PluginStatus
    swaps: int = 0
    quarantines: int = 0
    versions: int = 1

    def quarantine(self) -> None:
        self.quarantines += 1
        self.status = replace(self.status, quarantine=quarantined(self.status.quarantine.times + 1))

    def swap(self) -> None:
        self.versions += 1
        self._take_over(replace(self.status.current, id=f"v{self.versions}"))

    def roll_back(self) -> None:
        if self.status.previous is not None:
            self._take_over(self.status.previous)

    def _take_over(self, version: Any) -> None:
        self.swaps += 1
        self.status = replace(
            self.status,
            current=version,
            previous=self.status.current,
            quarantine=quarantined(0, "closed"),
            swaps=self.swaps,
        )


EVENTS = st.lists(st.sampled_from([Loaded.quarantine, Loaded.swap, Loaded.roll_back]))
Event = Callable[[Loaded], None]


def shown(bench: Bench, loaded: Loaded) -> tuple[float, float]:
    """Its quarantines and swaps, as one reading of the page has them."""
    bench.readings.plugins = [loaded.status]
    families = bench.families()
    (quarantines,) = families["sgl_router_plugin_quarantines"].samples
    (swaps,) = families["sgl_router_plugin_swaps"].samples
    return quarantines.value, swaps.value


@given(EVENTS)
def test_what_is_read_in_time_is_counted_over_all_versions(events: list[Event]) -> None:
    bench, loaded = Bench(), Loaded(plugin("mine"))
    for event in events:
        event(loaded)
        for _ in range(2):  # reading it is no event
            quarantines, swaps = shown(bench, loaded)
            assert quarantines == loaded.quarantines
            assert swaps == loaded.swaps


@example([[Loaded.quarantine], [Loaded.swap, Loaded.roll_back, Loaded.quarantine]])
@given(st.lists(EVENTS))
def test_however_seldom_it_is_read_no_counter_falls(rounds: list[list[Event]]) -> None:
    """And none of the version that decides is lost, though it may have decided before."""
    bench, loaded = Bench(), Loaded(plugin("mine"))
    before, swaps_before = 0.0, 0.0
    for events in rounds:
        for event in events:
            event(loaded)
        quarantines, swaps = shown(bench, loaded)
        fresh = loaded.status.quarantine.times if swaps > swaps_before else 0
        assert before + fresh <= quarantines <= loaded.quarantines
        assert swaps == loaded.swaps
        before, swaps_before = quarantines, swaps


def test_a_plugin_that_is_unloaded_leaves_the_page() -> None:
    gone = replace(plugin("gone"), quarantine=quarantined(2), swaps=4)
    bench = bench_with(gone, plugin("stays"))
    assert b"gone" in bench.page("")[0]
    bench.readings.plugins = [plugin("stays")]
    assert b"gone" not in bench.page("")[0]
    bench.readings.plugins = [plugin("stays"), replace(plugin("gone"), swaps=1)]
    assert bench.value("plugin_swaps_total", plugin="gone") == 1, "nothing of before is kept"
    assert bench.value("plugin_quarantines_total", plugin="gone") == 0


# ---- shadow


def test_what_came_of_decisions_in_shadow() -> None:
    counted = replace(
        report("mine", 0.5, "regular"),
        observed=40,
        decided=20,
        declined=2,
        agreed=13,
        failures={"trap": 3, "quarantined": 4},
        skipped=5,
    )
    bench = bench_with(plugin("mine"), shadow=counted)
    expected = {"agreed": 13, "differed": 7, "failed": 7, "skipped": 5}
    assert bench.values("shadow_decisions_total", "outcome") == expected
    assert {s.labels["plugin"] for s in bench.samples("shadow_decisions_total")} == {"mine"}
    bench.readings.shadow = None
    assert not bench.samples("shadow_decisions_total")


def test_another_version_in_shadow_is_counted_on_top() -> None:
    first = replace(report("mine", 0.5, "regular"), decided=10, agreed=8)
    bench = bench_with(shadow=first)
    assert bench.value("shadow_decisions_total", plugin="mine", outcome="agreed") == 8
    runs: list[dict[str, Any]] = [
        {"version": "v2"},  # as many as before, which must not be taken for the same
        {"version": "v2", "since_ms": first.since_ms + 1},
        {"version": "v2", "since_ms": first.since_ms + 1, "role": "decode"},
    ]
    for number, run in enumerate(runs, start=2):
        bench.readings.shadow = replace(first, **run)
        expected = {"agreed": 8 * number, "differed": 2 * number}
        shown = bench.values("shadow_decisions_total", "outcome")
        assert shown == {**expected, "failed": number, "skipped": number}


def test_another_plugin_in_shadow_begins_anew() -> None:
    bench = bench_with(shadow=report("one", 0.5, "regular"))
    assert bench.values("shadow_decisions_total", "plugin") == {"one": 4}
    bench.readings.shadow = report("two", 0.5, "regular")
    assert bench.values("shadow_decisions_total", "plugin") == {"two": 4}
