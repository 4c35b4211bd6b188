"""What the tests of hostile plugins share, besides what they share with those of other plugins."""

import gc
from collections.abc import Iterator

import pytest

from tests.made_once import no_document
from tests.wasm.conftest import no_collector

__all__ = ["no_collector", "no_document"]


@pytest.fixture(scope="session", autouse=True)
def quick_collector() -> Iterator[None]:
    """Nearly every test here collects garbage; what was there before the first is none."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
