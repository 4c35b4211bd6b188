"""What is read off the plugins, and off a shadow run, when the metrics are asked for."""

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import Metric
from prometheus_client.registry import Collector

from sgl_router.core.shadow import ShadowReport
from sgl_router.telemetry import catalogue as of
from sgl_router.telemetry.accumulators import RunningTotals
from sgl_router.telemetry.exposition import Labels, counter, gauge
from sgl_router.wasm.status import PluginStatus

_QUARANTINE_NUMBERS = {"closed": 0, "open": 1, "half_open": 2}
"""Those of a worker's circuit."""

_OF_PLUGINS: tuple[tuple[of.Described, Callable[[PluginStatus], int]], ...] = (
    (of.PLUGIN_QUARANTINE, lambda plugin: _QUARANTINE_NUMBERS[plugin.quarantine.state]),
    (of.PLUGIN_OFFLOADED, lambda plugin: plugin.lane == "offload"),
    (of.PLUGIN_WAITING, lambda plugin: plugin.waiting),
    (of.PLUGIN_STALE, lambda plugin: plugin.stale is not None),
    (of.PLUGIN_MEMORY, lambda plugin: plugin.current.memory_bytes),
)
"""The gauges of each plugin that have no other label."""


class Plugins(Collector):
    """The plugins as they are listed, and the shadow run.

    Args:
        plugins: those that are loaded.
        shadow: what the shadow run has counted; None where there is none.
    """

    def __init__(
        self,
        plugins: Callable[[], Iterable[PluginStatus]],
        shadow: Callable[[], ShadowReport | None],
    ) -> None:
        self._plugins = plugins
        self._shadow = shadow
        self._swaps = RunningTotals()
        self._quarantines = RunningTotals()
        self._decisions = RunningTotals()

    def collect(self) -> Iterator[Metric]:
        plugins = list(self._plugins())  # once, so that all metrics are of the same versions
        # A version starts without quarantines, also one that is returned to.
        quarantines = self._quarantines.update(
            ((plugin.name,), (plugin.current.id, plugin.swaps), plugin.quarantine.times)
            for plugin in plugins
        )
        swaps = self._swaps.update(((plugin.name,), None, plugin.swaps) for plugin in plugins)
        decisions = self._decisions.update(_compared(self._shadow()))
        yield from gauge(of.PLUGIN_INFO, ((_identity(plugin), 1) for plugin in plugins))
        for described, read in _OF_PLUGINS:
            yield from gauge(described, (((plugin.name,), read(plugin)) for plugin in plugins))
        yield from counter(of.PLUGIN_QUARANTINES, quarantines)
        yield from counter(of.PLUGIN_SWAPS, swaps)
        yield from counter(of.SHADOW_DECISIONS, decisions)


def _identity(plugin: PluginStatus) -> Labels:
    current = plugin.current
    return plugin.name, current.plugin_version or "", current.sha256


def _compared(report: ShadowReport | None) -> Iterator[tuple[Labels, object, int]]:
    """What came of a candidate's decisions; another version's are another run."""
    if report is None:
        return
    run = (report.version, report.role, report.since_ms)
    for outcome, count in (
        ("agreed", report.agreed),
        ("differed", report.decided - report.agreed),
        ("failed", sum(report.failures.values())),
        ("skipped", report.skipped),
    ):
        yield (report.plugin, outcome), run, count
