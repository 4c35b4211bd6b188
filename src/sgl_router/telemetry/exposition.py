"""From accumulators to Prometheus' text, by its client library.

A family of many samples comes as several of one name, which are written in a row.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import TypeVar

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, choose_encoder
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST as CONTENT_TYPE_OPENMETRICS
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from sgl_router.telemetry.accumulators import Histogram
from sgl_router.telemetry.catalogue import Described

PIECE_SAMPLES = 256
"""Samples that are made and written in one go: a millisecond or two, for which streams wait."""

# Asked for in words of our own: of a client's, the library raises TypeError on a version that is no
# number, and repeats whatever it is in the content type. No name here needs to be escaped; that
# they may be anything only spares the search for what to escape, half the cost.
_TEXT, _ = choose_encoder("text/plain; version=0.0.4")
_OPENMETRICS, _ = choose_encoder(
    "application/openmetrics-text; version=1.0.0; escaping=allow-utf-8"
)
_OPENMETRICS_END = b"# EOF\n"

Labels = tuple[str, ...]
_Row = TypeVar("_Row")


def counter(described: Described, values: Iterable[tuple[Labels, int]]) -> Iterator[Metric]:
    for rows in _slices(values):
        family = CounterMetricFamily(described.name, described.help, labels=described.labels)
        for labels, value in rows:
            family.add_metric(labels, value)
        yield family


def gauge(described: Described, values: Iterable[tuple[Labels, float]]) -> Iterator[Metric]:
    for rows in _slices(values):
        family = GaugeMetricFamily(described.name, described.help, labels=described.labels)
        for labels, value in rows:
            family.add_metric(labels, value)
        yield family


def histogram(
    described: Described, values: Iterable[tuple[Labels, Histogram]], per_second: int
) -> Iterator[Metric]:
    """`per_second` of the values' unit make a second."""
    bounds = [*map(floatToGoString, described.bounds), "+Inf"]
    for rows in _slices(values, samples=len(bounds) + 2):
        family = HistogramMetricFamily(described.name, described.help, labels=described.labels)
        for labels, value in rows:
            buckets = list(zip(bounds, accumulate(value.counts), strict=True))
            family.add_metric(labels, buckets, value.total / per_second)
        yield family


def _slices(values: Iterable[_Row], samples: int = 1) -> Iterator[list[_Row]]:
    """Rows for a piece each, of so many samples a row; one slice at least."""
    rows = list(values)  # at once: what they are read from may change from piece to piece
    size = PIECE_SAMPLES // samples
    for start in range(0, len(rows) or 1, size):
        yield rows[start : start + size]


def encode(collector: Collector, accept: str) -> tuple[Iterator[bytes], str]:
    """The page in pieces, and its content type.

    Args:
        collector: what to write.
        accept: the request's `Accept`; where it names OpenMetrics, as Prometheus' does, the page is
            OpenMetrics 1.0.0, else Prometheus' text 0.0.4. Anything else in it is ignored.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    if "application/openmetrics-text" in accepted:
        return _openmetrics(collector), CONTENT_TYPE_OPENMETRICS
    return _pieces(collector, _TEXT), CONTENT_TYPE_PLAIN_0_0_4


def _openmetrics(collector: Collector) -> Iterator[bytes]:
    for piece in _pieces(collector, _OPENMETRICS):
        yield piece.removesuffix(_OPENMETRICS_END)
    yield _OPENMETRICS_END


def _pieces(collector: Collector, write: Callable[[Collector], bytes]) -> Iterator[bytes]:
    written = ""
    for family in collector.collect():
        piece = write(_One(family))
        # The two lines of HELP and TYPE come once, however many pieces a family is in.
        yield piece.split(b"\n", 2)[2] if family.name == written else piece
        written = family.name


class _One(Collector):
    """Collects one family."""

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Iterable[Metric]:
        return (self._family,)
