"""What a candidate policy would have done beside the policy in use.

A decision of the policy in use is observed, the candidate is asked the same, and what it says is
counted but not followed. Its answer may come while the request runs, or after it has ended:

                 decided on a worker ──▶ counted in its would-be load ── ended ──▶ taken out of it
    asked ──┬──▶ declined, failed, skipped: no load
            └──▶ ended ── decided on a worker ──▶ counted, but never in flight

Requests that the candidate would have put elsewhere run where they are, so that a would-be load is
an estimate: it takes for granted that they would have lasted as long there.
"""

from collections import Counter
from dataclasses import dataclass
from math import ceil

from sgl_router.core.worker import Role, Worker
from sgl_router.errors import FailureKind

MAX_WORKERS = 4_096
"""Counted at a time, those included that have left: several times the largest pool expected."""

_DROPPED = 8  # one part in so many at a time, so that a look at all of them is seldom

_MANTISSA_BITS = 5
"""Of a time, its leading bits are kept: a percentile is off by 1/32 of itself at most."""

_ENTROPY_BITS = 53
_WORD = 2**64 - 1


@dataclass(frozen=True, slots=True)
class ShadowLatency:
    """How long the candidate's decisions took, in microseconds.

    Attributes:
        p50, p99: nearest-rank percentiles, off by one part in 32 at most.
        max: of all, exactly.
    """

    p50: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class ShadowWorker:
    """One worker, as it is and as it would be.

    Attributes:
        url: the worker's; one that has left is listed as long as there is room.
        requests: really placed on it, of those observed.
        would_be_requests: that the candidate would have placed on it.
        share: of all requests observed, 0 to 1.
        would_be_share: of all requests that the candidate placed, 0 to 1.
        would_be_load: requests in flight at the moment that the candidate would have placed on it.
        would_be_peak_load: the most of these at a time.
    """

    url: str
    requests: int
    would_be_requests: int
    share: float
    would_be_share: float
    would_be_load: int
    would_be_peak_load: int


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """What a candidate policy would have done.

    Attributes:
        plugin, version: the candidate.
        role: of the workers that it is tried for.
        share: of all decisions, those observed; 0 to 1.
        since_ms: when it began, in Unix milliseconds.
        policy: the policy in use, with which it is compared.
        observed: decisions that it was to be asked for; those that are neither decided nor failed
            nor skipped are waiting.
        decided: decisions that it took.
        declined: of these, the ones for which it chose no worker.
        agreed: of these, the ones for which it chose the worker that has the request.
        agreement: agreed / decided; None before the first.
        failures: decisions that it failed to take, by kind.
        skipped: decisions that it was not asked for because its queue was full.
        decision_us: how long a decision took it; None before the first.
        workers: those that had or would have had a request, by URL.
    """

    plugin: str
    version: str
    role: Role
    share: float
    since_ms: int
    policy: str
    observed: int
    decided: int
    declined: int
    agreed: int
    agreement: float | None
    failures: dict[str, int]
    skipped: int
    decision_us: ShadowLatency | None
    workers: list[ShadowWorker]


class _Counts:
    """Of one worker; `seen` is how many requests had been observed when it was last counted."""

    __slots__ = ("load", "peak", "requests", "seen", "would_be_requests")

    def __init__(self) -> None:
        self.requests = 0
        self.would_be_requests = 0
        self.load = 0
        self.peak = 0
        self.seen = 0


class ShadowPlacement:
    """One request observed: where it is, and where the candidate would have put it.

    Exactly one of `decided`, `failed` and `skipped` is told, and `ended` exactly once, in any
    order.
    """

    __slots__ = ("_answered", "_counts", "_ended", "_tally", "_url")

    def __init__(self, tally: "ShadowTally", url: str) -> None:
        self._tally = tally
        self._url = url
        self._counts: _Counts | None = None
        self._answered = False
        self._ended = False

    def decided(self, worker: Worker | None, elapsed_ns: int) -> None:
        """The candidate chose this worker, or none; its decision took so many nanoseconds."""
        self._answer()
        counts = self._tally._count(self._url, worker, elapsed_ns)
        if counts is not None and not self._ended:
            self._counts = counts
            counts.load += 1
            counts.peak = max(counts.peak, counts.load)

    def failed(self, kind: FailureKind) -> None:
        """The candidate failed to decide."""
        self._answer()
        self._tally._failures[kind] += 1

    def skipped(self) -> None:
        """The candidate was not asked, for it had too much to do."""
        self._answer()
        self._tally._skipped += 1

    def ended(self) -> None:
        """The request is over."""
        assert not self._ended, "a request ends once"
        self._ended = True
        if self._counts is not None:
            self._counts.load -= 1
            assert self._counts.load >= 0, "no more loads are given back than were taken"

    def _answer(self) -> None:
        assert not self._answered, "a decision is answered once"
        self._answered = True


class ShadowTally:
    """Counts what a candidate would have done; belongs to one thread.

    Workers are known by their URL, so that one that leaves and comes back stays the same.

    Args:
        max_workers: counted at a time. Where another comes, room is made: at first those go that
            have nothing in flight, and of these the ones not seen for longest.
    """

    def __init__(self, max_workers: int = MAX_WORKERS) -> None:
        self._max_workers = max_workers
        self._workers: dict[str, _Counts] = {}
        self._observed = 0
        self._decided = 0
        self._declined = 0
        self._agreed = 0
        self._skipped = 0
        self._failures: Counter[FailureKind] = Counter()
        self._times = _Times()

    def asked(self, worker: Worker) -> ShadowPlacement:
        """A decision is observed; the request is really placed on `worker`."""
        self._observed += 1
        self._of(worker.url).requests += 1
        return ShadowPlacement(self, worker.url)

    def report(
        self, *, plugin: str, version: str, role: Role, share: float, since_ms: int, policy: str
    ) -> ShadowReport:
        """What has been counted up to this moment; the arguments are shown as they are."""
        return ShadowReport(
            plugin=plugin,
            version=version,
            role=role,
            share=share,
            since_ms=since_ms,
            policy=policy,
            observed=self._observed,
            decided=self._decided,
            declined=self._declined,
            agreed=self._agreed,
            agreement=self._agreed / self._decided if self._decided else None,
            failures={str(kind): count for kind, count in sorted(self._failures.items())},
            skipped=self._skipped,
            decision_us=self._times.latency(),
            workers=[self._shown(url, counts) for url, counts in sorted(self._workers.items())],
        )

    def _shown(self, url: str, counts: _Counts) -> ShadowWorker:
        return ShadowWorker(
            url=url,
            requests=counts.requests,
            would_be_requests=counts.would_be_requests,
            share=counts.requests / max(self._observed, 1),
            would_be_share=counts.would_be_requests / max(self._decided - self._declined, 1),
            would_be_load=counts.load,
            would_be_peak_load=counts.peak,
        )

    def _count(self, url: str, chosen: Worker | None, elapsed_ns: int) -> _Counts | None:
        """A decision about the request that is on the worker of this URL."""
        self._decided += 1
        self._times.add(elapsed_ns)
        if chosen is None:
            self._declined += 1
            return None
        self._agreed += chosen.url == url
        counts = self._of(chosen.url)
        counts.would_be_requests += 1
        return counts

    def _of(self, url: str) -> _Counts:
        counts = self._workers.get(url)
        if counts is None:
            if len(self._workers) >= self._max_workers:
                self._make_room()
            counts = self._workers[url] = _Counts()
        counts.seen = self._observed
        return counts

    def _make_room(self) -> None:
        """A placement keeps its counts, so that one that is dropped in flight is no error."""
        by_use = sorted(
            self._workers, key=lambda url: (self._workers[url].load > 0, self._workers[url].seen)
        )
        for url in by_use[: ceil(self._max_workers / _DROPPED)]:
            del self._workers[url]


class _Times:
    """How many decisions took how long, by the leading bits of their nanoseconds."""

    __slots__ = ("_counts", "_max_ns")

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, int]] = Counter()
        self._max_ns = 0

    def add(self, elapsed_ns: int) -> None:
        shift = max(elapsed_ns.bit_length() - _MANTISSA_BITS, 0)
        self._counts[shift, elapsed_ns >> shift] += 1
        self._max_ns = max(self._max_ns, elapsed_ns)

    def latency(self) -> ShadowLatency | None:
        """None before the first."""
        if not self._counts:
            return None
        return ShadowLatency(
            p50=self._percentile_ns(50) / 1e3,
            p99=self._percentile_ns(99) / 1e3,
            max=self._max_ns / 1e3,
        )

    def _percentile_ns(self, percent: int) -> float:
        """The middle of the bucket that holds the value of this rank."""
        rank = ceil(self._counts.total() * percent / 100)
        for (shift, leading), count in sorted(self._counts.items()):
            rank -= count
            if rank <= 0:
                middle = (leading << shift) + ((1 << shift) - 1) / 2
                return min(middle, self._max_ns)
        raise AssertionError("a rank is one of those counted")


def in_sample(entropy: int, share: float) -> bool:
    """Whether a decision belongs to a sample of this share (0 to 1); the same for equal entropy.

    The same bits decide: `entropy % n` chooses one of n workers, and entropy below a bound one by
    its weight. They are mixed first (SplitMix64; Steele, Lea and Flood 2014), so that the sample
    holds every choice as often as the whole does.
    """
    mixed = (entropy + 0x9E3779B97F4A7C15) & _WORD
    mixed = ((mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9) & _WORD
    mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & _WORD
    mixed ^= mixed >> 31
    return mixed >> (64 - _ENTROPY_BITS) < share * (1 << _ENTROPY_BITS)
