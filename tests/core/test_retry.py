"""Retries as values: which statuses, how long a pause, what a Retry-After says."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.core.retry import (
    MAX_RETRY_AFTER_MS,
    RETRYABLE_STATUSES,
    RetrySettings,
    retry_after_ms,
)

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


NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
NOW_MS = int(NOW.timestamp()) * 1000


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"0", 0),
        (b"1", 1_000),
        (b" 120 \t", 120_000),
        (b"007", 7_000),
        (b"3600", MAX_RETRY_AFTER_MS),
        (b"3601", MAX_RETRY_AFTER_MS),
        (b"9" * 100_000, MAX_RETRY_AFTER_MS),
        (b"0" * 100_000 + b"5", 5_000),
        # RFC 9110 5.6.7: the three forms of a date
        (b"Sun, 01 Mar 2026 12:00:30 GMT", 30_000),
        (b"Sunday, 01-Mar-26 12:00:30 GMT", 30_000),
        (b"Sun Mar  1 12:00:30 2026", 30_000),
        (b"Sun, 01 Mar 2026 11:59:59 GMT", 0),
        (b"Sunday, 06-Nov-94 08:49:37 GMT", 0),  # 1994, not 2094
        (b"Thu, 31 Dec 2026 23:59:60 GMT", MAX_RETRY_AFTER_MS),
        (b"Fri, 01 Jan 9999 00:00:00 GMT", MAX_RETRY_AFTER_MS),
    ],
)
def test_what_is_understood(value: bytes, expected: int) -> None:
    assert retry_after_ms(value, NOW_MS) == expected


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b" ",
        b"-1",
        b"+1",
        b"1.5",
        b"1e3",
        b"5 s",
        b"soon",
        b"\xb2",
        "٣".encode(),
        b"Sun, 01 Mar 2026 12:00:30",
        b"Sun, 01 Mar 2026 12:00:30 +0000",
        b"Sun, 1 Mar 2026 12:00:30 GMT",
        b"sun, 01 mar 2026 12:00:30 gmt",
        b"Sun, 30 Feb 2026 12:00:30 GMT",
        b"Sun, 01 Mar 2026 24:00:30 GMT",
        b"Sun, 01 Mar 2026 12:60:30 GMT",
        b"Sun, 01 Mar 2026 12:00:61 GMT",
        b"Sun, 01 Mar 0000 12:00:00 GMT",
        b"2026-03-01T12:00:30Z",
        b"Sun, 01 Mar 2026 12:00:30 GMT, 5",
    ],
)
def test_what_is_not(value: bytes | None) -> None:
    assert retry_after_ms(value, NOW_MS) is None


@given(st.integers(-10_000, 3_600))
def test_a_date_is_as_far_away_as_it_is(secs: int) -> None:
    value = format_datetime(NOW + timedelta(seconds=secs), usegmt=True).encode()
    assert retry_after_ms(value, NOW_MS) == max(secs, 0) * 1000


@given(st.binary(max_size=40) | st.from_regex(rb"[A-Z][a-z]{2}, \d{2} Mar \d{4} .{8} GMT"))
def test_anything_is_a_time_within_bounds_or_nothing(value: bytes) -> None:
    found = retry_after_ms(value, NOW_MS)
    assert found is None or 0 <= found <= MAX_RETRY_AFTER_MS
