"""The figures of `overhead.py` as bars, from the JSON that it writes.

    python benchmarks/chart.py overhead.json overhead.svg

matplotlib is wanted here only, and imported only when something is drawn.
"""

import importlib
import importlib.util
import json
import statistics
import sys
from pathlib import Path
from typing import Any

PANELS = (
    ("paced_cpu_us", "CPU µs a request, at a fixed rate", 1),
    ("full_rate", "requests/s, saturated (more is better)", 0),
    ("chunk_cpu_us", "CPU µs a streamed chunk", 1),
    ("added_p50_us", "added latency, median µs", 0),
    ("added_p99_us", "added latency, 99th percentile µs", 0),
    ("loaded_mb", "resident MB after load", 0),
)
"""Measure, title and decimals."""
OWN_COLOUR, OTHER_COLOUR = "#3b6ea5", "#a9b4c0"


def require_matplotlib() -> None:
    """Raises SystemExit where it is missing, before anything is measured for nothing."""
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit(
            f"to draw needs matplotlib: {sys.executable} -m pip install matplotlib (option --plot)"
        )


def draw(document: dict[str, Any], path: str) -> None:
    """Medians as bars, one panel for each measure, with the range of the rounds."""
    require_matplotlib()
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams["svg.fonttype"] = "none"  # text as text: a quarter of the size
    matplotlib.rcParams["svg.hashsalt"] = "sgl-router"  # the same figures make the same file
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(2, 3, figsize=(14, 7.5), layout="constrained")
    for panel, (measure, title, digits) in zip(axes.flat, PANELS, strict=True):
        rows = document["figures"].items()
        _panel(panel, {name: row[measure] for name, row in rows if row.get(measure)}, digits)
        panel.set_title(title, fontsize=10)
    settings = document["settings"]
    figure.suptitle(
        f"{settings['rounds']} rounds of {settings['seconds']:g} s, medians and ranges; "
        f"{settings['connections']} connections, {settings['rate']:,.0f} requests/s; "
        f"{settings['streams']} streams; {'one CPU' if settings['one_cpu'] else 'nothing pinned'}",
        fontsize=10,
    )
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _panel(panel: Any, rows: dict[str, list[float]], digits: int) -> None:
    """Bars of the medians of these rounds, by program."""
    medians = [statistics.median(values) for values in rows.values()]
    ranges = [
        [median - min(values) for median, values in zip(medians, rows.values(), strict=True)],
        [max(values) - median for median, values in zip(medians, rows.values(), strict=True)],
    ]
    colours = [OWN_COLOUR if name.startswith("sgl-router") else OTHER_COLOUR for name in rows]
    bars = panel.barh(list(rows), medians, color=colours, xerr=ranges, ecolor="#555555")
    panel.bar_label(bars, fmt=f"{{:,.{digits}f}}", padding=6, fontsize=8)
    panel.invert_yaxis()
    panel.margins(x=0.15)
    panel.tick_params(labelsize=8)
    panel.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: chart.py overhead.json overhead.svg")
    draw(json.loads(Path(sys.argv[1]).read_text("utf-8")), sys.argv[2])
