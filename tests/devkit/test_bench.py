"""The times of a plugin's decisions: how many are taken, and what is told of them."""

from pathlib import Path

import pytest

from sgl_router.devkit.bench import SIZES, bench_plugin
from sgl_router.devkit.target import find_target
from sgl_router.errors import DecisionError, PluginRefused
from tests.devkit.projects import project
from tests.testing.guests import GROW, KEEP, sound, traps_on


def test_a_row_for_each_number_of_workers(tmp_path: Path) -> None:
    told: list[float] = []
    bench = bench_plugin(find_target(project(tmp_path / "mine")), 50, 60.0, progress=told.append)
    assert (bench.plugin, bench.abi, bench.lane) == ("mine", "json_v1", "inline")
    assert [row.workers for row in bench.rows] == list(SIZES)
    for row in bench.rows:
        assert row.decisions == 50
        assert 0 < row.p50_us <= row.p99_us <= row.max_us
        assert row.memory_bytes == 8 * 65_536
        assert row.instances == 1
        assert (row.budget, row.budget_ms) == ("inline_budget_ms", 100)
        assert row.p99_share == pytest.approx(row.p99_us / 100_000)
        assert row.p50_share == pytest.approx(row.p50_us / 100_000)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_row_ends_by_time_too(tmp_path: Path) -> None:
    bench = bench_plugin(find_target(project(tmp_path / "mine")), 10**9, 1e-9, sizes=(1,))
    assert [row.decisions for row in bench.rows] == [1]


def test_the_budget_of_the_lane(tmp_path: Path) -> None:
    files = project(tmp_path / "files", settings='allowed_syscalls = ["wasi:filesystem"]')
    bench = bench_plugin(find_target(files), 5, 60.0, sizes=(1,))
    assert bench.lane == "offload"
    assert (bench.rows[0].budget, bench.rows[0].budget_ms) == ("max_execution_time_ms", 5_000)
    short = find_target(files, {"allowed_syscalls": [], "max_execution_time_ms": 90})
    row = bench_plugin(short, 5, 60.0, sizes=(1,)).rows[0]
    assert (row.budget, row.budget_ms) == ("max_execution_time_ms", 90)


def test_memory_that_grows_is_seen(tmp_path: Path) -> None:
    leaks = project(tmp_path / "mine", sound(alloc=GROW, dealloc=KEEP))
    row = bench_plugin(find_target(leaks), 100, 60.0, sizes=(512,)).rows[0]
    assert row.instances > 1
    assert row.memory_bytes > 8 * 65_536


def test_an_instance_for_each_decision_is_not_full(tmp_path: Path) -> None:
    each = find_target(project(tmp_path / "mine"), {"isolation": "per_call"})
    bench = bench_plugin(each, 5, 60.0, sizes=(1,))
    assert bench.per_call
    assert bench.rows[0].instances >= 5
    assert bench.rows[0].memory_bytes == 0
    assert not bench_plugin(find_target(tmp_path / "mine"), 5, 60.0, sizes=(1,)).per_call


def test_what_fails_is_raised(tmp_path: Path) -> None:
    fails = project(tmp_path / "fails", traps_on("10.0.0.8:"))
    with pytest.raises(DecisionError, match="unreachable"):
        bench_plugin(find_target(fails), 10, 60.0)
    with pytest.raises(PluginRefused):
        bench_plugin(find_target(project(tmp_path / "large", sound(pages=17))), 10, 60.0)
