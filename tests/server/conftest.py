"""The two ways in which a change of a file is noticed."""

from typing import Any

import pytest

from sgl_router.server import watch
from tests.made_once import no_document
from tests.server.watching import NEVER, QUICK, failing_watch

__all__ = ["no_document"]


@pytest.fixture(params=["hints", "looks"])
def by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """How a change is noticed: by either alone."""
    if request.param == "hints":
        return {**QUICK, "look_secs": NEVER}
    monkeypatch.setattr(watch, "watch", failing_watch)
    return {**QUICK, "look_secs": 0.02}
