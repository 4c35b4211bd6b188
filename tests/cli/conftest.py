"""What tests of the commands share."""

from collections.abc import Iterator

import pytest

from sgl_router.cli.router_client import KEY_VARIABLE
from tests.cli.fake_router import FakeRouter, fake_router


@pytest.fixture
def router(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeRouter]:
    """A router that does whatever it is asked, and no key in the environment."""
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    with fake_router() as running:
        running.answer_all()
        yield running
