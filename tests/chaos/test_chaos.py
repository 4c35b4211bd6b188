"""The chaos run for twenty seconds; `benchmarks/chaos.py` runs it for as long as one likes."""

from pathlib import Path

import pytest

from tests.chaos.run import Plan, chaos


async def test_nothing_is_lost_nor_served_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Engines are killed, hung and restarted, clients leave, policies and workers change."""
    lines: list[str] = []
    verdict = await chaos(Plan(seed=20, seconds=20.0), tmp_path, lines.append)
    assert not verdict.violations, f"{verdict}\n" + "\n".join(lines)
    assert [record for record in caplog.records if record.exc_info] == []
    # Else it would show nothing.
    assert verdict.covered > 100
    assert verdict.outcomes["answered"] > 100
    assert verdict.outcomes["left"] > 10
    assert verdict.begun_again.total() > 0
    assert any("an engine had begun on it" in why for why in verdict.allowed)
