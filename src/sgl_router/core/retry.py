"""Which answers are asked for again, and after how long: values, no sleeping.

A request whose engine says that it has not begun on it goes to another worker, after a pause; the
worker that said so is left out, whatever it says of when to come back. Where no other is left, or
the retries are used up, its answer is passed to the client as it is.
"""

from dataclasses import dataclass

RETRYABLE_STATUSES = frozenset({429, 503})
"""Too Many Requests and Service Unavailable: the engine refused, so nothing was generated.

The others that sglang-router retries are not here. After 408 and 504 the engine, or what stands
before it, gave up on a request that may be running still, so that a retry makes it run twice; 500
and 502 may come in the middle of the work, and a request that crashes engines would be handed from
one to the next.
"""

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
