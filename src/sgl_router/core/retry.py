"""Which answers are asked for again, and after how long: values, no sleeping.

A request whose engine says that it has not begun on it goes to another worker, after a pause; the
worker that said so is left out, whatever it says of when to come back. Where no other is left, or
the retries are used up, its answer is passed to the client as it is.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime

RETRYABLE_STATUSES = frozenset({429, 503})
"""Too Many Requests and Service Unavailable: the engine refused, so nothing was generated.

The others that sglang-router retries are not here. After 408 and 504 the engine, or what stands
before it, gave up on a request that may be running still, so that a retry makes it run twice; 500
and 502 may come in the middle of the work, and a request that crashes engines would be handed from
one to the next.
"""

MAX_RETRY_AFTER_MS = 3_600_000
"""An engine that names a later time is not believed: an hour is longer than any of them starts."""

_ENTROPY = 2.0**53


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """How often and how soon (defaults: sglang-router's).

    Attributes:
        max_retries: after the first attempt.
        initial_backoff_ms: the pause before the first of them.
        max_backoff_ms: no pause is longer.
        backoff_multiplier: each pause is so much longer than the one before.
        jitter_factor: the share, 0 to 1, by which a pause is longer or shorter at random, so that
            clients that were refused together do not come back together.
    """

    max_retries: int = 5
    initial_backoff_ms: float = 50
    max_backoff_ms: float = 30_000
    backoff_multiplier: float = 1.5
    jitter_factor: float = 0.2

    def backoff_ms(self, attempt: int, entropy: int) -> float:
        """The pause after an attempt, in milliseconds.

        Args:
            attempt: which attempt was refused, the first being 0.
            entropy: 53 random bits.
        """
        pause = float(self.initial_backoff_ms)
        for _ in range(attempt):
            if pause >= self.max_backoff_ms:
                break
            pause *= self.backoff_multiplier
        jitter = self.jitter_factor * (2 * entropy / _ENTROPY - 1)
        return min(min(pause, self.max_backoff_ms) * (1 + jitter), self.max_backoff_ms)


# ---- Retry-After

_MONTHS = {
    month: number
    for number, month in enumerate(
        b"Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(), start=1
    )
}
_MONTH = rb"(?P<month>" + b"|".join(_MONTHS) + rb")"
_TIME = rb"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"

# RFC 9110 5.6.7: IMF-fixdate, and the two older forms that a recipient must accept.
_HTTP_DATES = [
    re.compile(pattern)
    for pattern in (
        rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (?P<day>\d\d) %b (?P<year>\d{4}) %b GMT"
        % (_MONTH, _TIME),
        rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-%b-(?P<year>\d\d) %b GMT"
        % (_MONTH, _TIME),
        rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) %b (?P<day>[ \d]\d) %b (?P<year>\d{4})"
        % (_MONTH, _TIME),
    )
]


def retry_after_ms(value: bytes | None, now_ms: int) -> int | None:
    """What a `Retry-After` asks for (RFC 9110 10.2.3), in milliseconds from now.

    Args:
        value: the header's value, seconds or an HTTP date; None: there is no such header.
        now_ms: Unix time.

    Returns 0 for a date that is over, at most MAX_RETRY_AFTER_MS, None where it says nothing that
    is understood.
    """
    value = (value or b"").strip(b" \t")
    if value.isdigit():
        digits = value.lstrip(b"0")  # before anything is made of it: it may be a whole head long
        if len(digits) > len(str(MAX_RETRY_AFTER_MS)):
            return MAX_RETRY_AFTER_MS
        return min(int(digits or b"0") * 1000, MAX_RETRY_AFTER_MS)
    for date in _HTTP_DATES:
        if found := date.fullmatch(value):
            at_ms = _unix_ms(found, now_ms)
            return None if at_ms is None else min(max(at_ms - now_ms, 0), MAX_RETRY_AFTER_MS)
    return None


def _unix_ms(date: re.Match[bytes], now_ms: int) -> int | None:
    """Unix time of an HTTP date, or None where there is no such day or time."""
    year, second = int(date["year"]), int(date["second"])
    if len(date["year"]) == 2:
        this_year = datetime.fromtimestamp(now_ms / 1000, UTC).year
        year += this_year // 100 * 100
        if year > this_year + 50:
            year -= 100  # RFC 9110 5.6.7: more than 50 years ahead means the past
    if second == 60:
        second = 59  # a leap second, which Unix time does not know
    try:
        moment = datetime(
            year,
            _MONTHS[date["month"]],
            int(date["day"]),
            int(date["hour"]),
            int(date["minute"]),
            second,
            tzinfo=UTC,
        )
    except ValueError:
        return None
    return int(moment.timestamp()) * 1000
