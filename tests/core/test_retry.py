"""Retries as values: which statuses, how long a pause."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.retry import RETRYABLE_STATUSES, RetrySettings

ENTROPY = st.integers(0, 2**53 - 1)
HALF = 2**52  # no jitter
SETTINGS = st.builds(
    RetrySettings,
    initial_backoff_ms=st.floats(0, 1e4),
    max_backoff_ms=st.floats(0, 1e5),
    backoff_multiplier=st.floats(1, 10),
    jitter_factor=st.floats(0, 1),
)


def test_only_statuses_that_say_that_nothing_was_generated() -> None:
    assert {429, 503} == RETRYABLE_STATUSES


def test_the_defaults_and_the_pauses_that_follow() -> None:
    settings = RetrySettings()
    assert settings.max_retries == 5
    pauses = [settings.backoff_ms(attempt, HALF) for attempt in range(5)]
    assert pauses == [50, 75, 112.5, 168.75, 253.125]
    assert settings.backoff_ms(100, HALF) == 30_000
    assert settings.backoff_ms(0, 0) == 40  # a fifth less at most
    assert settings.backoff_ms(0, 2**53 - 1) == pytest.approx(60)


@given(SETTINGS, st.integers(0, 10_000), ENTROPY)
def test_a_pause_is_never_negative_and_never_above_the_limit(
    settings: RetrySettings, attempt: int, entropy: int
) -> None:
    assert 0 <= settings.backoff_ms(attempt, entropy) <= settings.max_backoff_ms


@given(SETTINGS, st.integers(0, 50), ENTROPY)
def test_the_next_pause_is_no_shorter(settings: RetrySettings, attempt: int, entropy: int) -> None:
    assert settings.backoff_ms(attempt, entropy) <= settings.backoff_ms(attempt + 1, entropy)


@given(st.integers(0, 12), ENTROPY)
def test_jitter_keeps_within_its_share(attempt: int, entropy: int) -> None:
    settings = RetrySettings(jitter_factor=0.2)
    middle = 50 * 1.5**attempt
    assert middle * 0.8 <= settings.backoff_ms(attempt, entropy) <= middle * 1.2


@given(ENTROPY, ENTROPY)
def test_without_jitter_entropy_makes_no_difference(one: int, other: int) -> None:
    settings = RetrySettings(jitter_factor=0)
    assert settings.backoff_ms(3, one) == settings.backoff_ms(3, other)
