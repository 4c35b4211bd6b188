"""The control plane's answers about plugins, as tables and sentences.

Whatever JSON came, something is shown: a value that is missing or of another kind than expected is
shown as it is. Nothing is escaped here; `terminal.show` does that, of every text.
"""

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from sgl_router.cli.terminal import Sheet, Shown

_NOTHING = "–"
_CELL_LIMIT = 500


def plugin_list(answer: Any) -> list[Shown]:
    """What GET /plugins answers, as much as 80 columns have; `plugin show` has the rest."""
    plugins = _items(answer, "plugins")
    if not plugins:
        return ["no plugin is loaded; sgl-router plugin load FILE loads one"]
    columns = ("plugin", "version", "in use as", "decisions", "failed", "quarantine")
    rows = [
        (
            text(_at(plugin, "name")),
            text(_at(plugin, "current", "id")),
            text(_at(plugin, "in_use_as")),
            text(_at(plugin, "current", "decisions")),
            _total(_at(plugin, "current", "failures")),
            _quarantine(_at(plugin, "quarantine")),
        )
        for plugin in plugins
    ]
    notes = [
        f"{text(_at(plugin, 'name'))}: {what}: {text(_at(plugin, key))}"
        for plugin in plugins
        for key, what in (
            ("stale", "its newest module or settings are not in use"),
            ("last_failure", "its last failure"),
        )
        if _at(plugin, key) is not None
    ]
    return [Sheet(columns, rows, frozenset({"decisions", "failed"})), *notes]


def plugin_details(plugin: Any) -> list[Shown]:
    """What GET /plugins/NAME answers."""
    quarantine = _at(plugin, "quarantine")
    facts = [
        ("plugin", text(_at(plugin, "name"))),
        ("in use as", text(_at(plugin, "in_use_as"))),
        ("lane", f"{text(_at(plugin, 'lane'))}, {text(_at(plugin, 'waiting'))} waiting"),
        ("fallback", text(_at(plugin, "fallback"))),
        ("quarantine", _quarantine(quarantine)),
        ("failures in a row", text(_at(quarantine, "failures_in_row"))),
        ("times in quarantine", text(_at(quarantine, "times"))),
        ("last in quarantine for", text(_at(quarantine, "reason"))),
        ("last failure", text(_at(plugin, "last_failure"))),
        ("newest is not in use", text(_at(plugin, "stale"))),
        ("swaps", text(_at(plugin, "swaps"))),
    ]
    current, previous = _at(plugin, "current"), _at(plugin, "previous")
    versions = [current] if previous is None else [current, previous]
    columns = ("", "current", "previous")[: len(versions) + 1]
    parts: list[Shown] = [Sheet(("", ""), facts), Sheet(columns, _version_rows(versions))]
    return parts + _last_words(_at(plugin, "last_failure_detail"))


def _last_words(failure: Any) -> list[Shown]:
    """Where the last failed call was, and what it printed."""
    columns = {
        "backtrace": "in the last failure, innermost first",
        "output": "printed in the last failure",
    }
    printed = _at(failure, "output")
    lines = {
        "backtrace": _items(failure, "backtrace"),
        "output": printed.split("\n") if isinstance(printed, str) else [],
    }
    return [
        Sheet((heading,), [(text(line),) for line in lines[key]])
        for key, heading in columns.items()
        if lines[key]
    ]


def put_result(answer: Any, *, used_next: bool = False) -> list[Shown]:
    """What PUT /plugins/NAME and its reload answer; `used_next`: the policy is switched to it."""
    plugin, test = _at(answer, "plugin"), _at(answer, "self_test")
    name, status = text(_at(plugin, "name")), text(_at(answer, "status"))
    version = _version(_at(plugin, "current"))
    if status == "unchanged":
        said = f"unchanged: {name} has this module and these settings, as version {version}"
    else:
        said = f"{status}: {name}, version {version}"
    parts: list[Shown] = [said]
    if test is not None:
        chosen, error = _at(test, "selected_worker"), _at(test, "error")
        what = "no worker" if chosen is None else f"worker {text(chosen)}"
        said = f"self-test: it chose {what} in {microseconds(_at(test, 'elapsed_us'))}"
        parts.append(said if error is None else f"{said}, and reported: {text(error)}")
    if not _at(plugin, "in_use_as") and not used_next:
        parts.append(f"it decides nothing yet; sgl-router plugin use {name} has it decide")
    return parts


def rolled_back(plugin: Any) -> list[Shown]:
    """What POST /plugins/NAME/rollback answers."""
    name, version = text(_at(plugin, "name")), _version(_at(plugin, "current"))
    return [f"rolled back: {name} is version {version} again"]


def unloaded(answer: Any) -> list[Shown]:
    """What DELETE /plugins/NAME answers."""
    return [f"{text(_at(answer, 'status'))}: {text(_at(answer, 'name'))}"]


def policies_in_use(answer: Any) -> list[Shown]:
    """What GET and PUT /policy and POST /shadow/promote answer."""
    keys = ("role", "policy", "kind", "version", "fallback")
    rows = [tuple(text(_at(one, key)) for key in keys) for one in _items(answer, "policies")]
    return [Sheet(keys, rows)] if rows else ["no policy is in use"]


def shadow_report(answer: Any) -> list[Shown]:
    """What GET, PUT and DELETE /shadow answer."""
    report = _at(answer, "shadow")
    if report is None:
        return ["no shadow run is under way; sgl-router plugin shadow NAME starts one"]
    facts = [
        ("plugin", f"{text(_at(report, 'plugin'))}, version {text(_at(report, 'version'))}"),
        ("role", text(_at(report, "role"))),
        ("share of the decisions", percent(_at(report, "share"))),
        ("since", moment(_at(report, "since_ms"))),
        ("policy in use", text(_at(report, "policy"))),
        ("observed", text(_at(report, "observed"))),
        ("decided", text(_at(report, "decided"))),
        ("declined to choose", text(_at(report, "declined"))),
        ("agreed", text(_at(report, "agreed"))),
        ("agreement", percent(_at(report, "agreement"))),
        ("failures", text(_at(report, "failures"))),
        ("skipped, asked too fast", text(_at(report, "skipped"))),
        ("a decision took, p50", microseconds(_at(report, "decision_us", "p50"))),
        ("a decision took, p99", microseconds(_at(report, "decision_us", "p99"))),
        ("a decision took at most", microseconds(_at(report, "decision_us", "max"))),
    ]
    parts: list[Shown] = [Sheet(("", ""), facts)]
    workers = _items(report, "workers")
    return [*parts, _shadow_workers(workers)] if workers else parts


def _shadow_workers(workers: Iterable[Any]) -> Sheet:
    columns: dict[str, tuple[str, Callable[[Any], str]]] = {
        "worker": ("url", text),
        "requests": ("requests", text),
        "share": ("share", percent),
        "would be requests": ("would_be_requests", text),
        "would be share": ("would_be_share", percent),
        "would be load": ("would_be_load", text),
        "at most": ("would_be_peak_load", text),
    }
    rows = [tuple(shown(_at(worker, key)) for key, shown in columns.values()) for worker in workers]
    return Sheet(tuple(columns), rows, frozenset(columns) - {"worker"})


# ---- values ----


def text(value: Any) -> str:
    """A value of JSON in a few words: 1,234; yes; a, b; trap 3, timeout 1; – for none."""
    if value is None or value in ("", [], {}):
        return _NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        shown = ", ".join(value)
    elif isinstance(value, dict) and all(type(item) is int for item in value.values()):
        shown = ", ".join(f"{key} {item:,}" for key, item in value.items())
    else:
        shown = value if isinstance(value, str) else orjson.dumps(value).decode()
    return shown if len(shown) <= _CELL_LIMIT else f"{shown[:_CELL_LIMIT]}… (--json shows all)"


def microseconds(value: Any) -> str:
    """A time: 3.2 µs, 41.0 ms, 1.5 s."""
    if not _is_number(value):
        return text(value)
    for unit, size in (("s", 1e6), ("ms", 1e3)):
        if abs(value) >= size:
            return f"{value / size:,.1f} {unit}"
    return f"{value:.1f} µs"


def percent(share: Any) -> str:
    """A share of 1: 12.5%."""
    return f"{share:.1%}" if _is_number(share) else text(share)


def moment(unix_ms: Any) -> str:
    """A time of day: 2026-01-31 12:00:00 UTC."""
    if not _is_number(unix_ms):
        return text(unix_ms)
    try:
        return f"{datetime.fromtimestamp(unix_ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):  # beyond the years that a date has
        return text(unix_ms)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _at(value: Any, *keys: str) -> Any:
    """What stands there; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _items(value: Any, key: str) -> list[Any]:
    items = _at(value, key)
    return items if isinstance(items, list) else []


def _total(failures: Any) -> str:
    counts = failures.values() if isinstance(failures, dict) else ()
    return text(sum(count for count in counts if type(count) is int))


def _version(version: Any) -> str:
    """Its id, and what the plugin calls it."""
    own = _at(version, "plugin_version")
    return text(_at(version, "id")) + ("" if own is None else f" ({text(own)})")


def _quarantine(quarantine: Any) -> str:
    state, left_ms = _at(quarantine, "state"), _at(quarantine, "left_ms")
    if state == "open" and _is_number(left_ms):
        return f"for {microseconds(left_ms * 1000)}"
    words = {"closed": "no", "half_open": "being tried out"}
    return words.get(state, text(state)) if isinstance(state, str) else text(state)


def _version_rows(versions: Sequence[Any]) -> list[tuple[str, ...]]:
    facts: dict[str, Callable[[Any], str]] = {
        "id": lambda version: text(_at(version, "id")),
        "plugin's own version": lambda version: text(_at(version, "plugin_version")),
        "sha256": lambda version: text(_at(version, "sha256")),
        "abi": lambda version: text(_at(version, "abi")),
        "source": _source,
        "loaded": lambda version: moment(_at(version, "loaded_at_ms")),
        "decisions": lambda version: text(_at(version, "decisions")),
        "failures": lambda version: text(_at(version, "failures")),
        "instances": lambda version: text(_at(version, "instances")),
        "memory, bytes": lambda version: text(_at(version, "memory_bytes")),
        "state, bytes": lambda version: text(_at(version, "state_bytes")),
    }
    rows = [(fact, *map(shown, versions)) for fact, shown in facts.items()]
    settings = [_at(version, "settings") for version in versions]
    names = dict.fromkeys(name for one in settings if isinstance(one, dict) for name in one)
    rows += [(name, *(text(_at(one, name)) for one in settings)) for name in names]
    return rows


def _source(version: Any) -> str:
    kind, path = _at(version, "source", "kind"), _at(version, "source", "path")
    return text(kind) if path is None else f"{text(kind)} {text(path)}"
