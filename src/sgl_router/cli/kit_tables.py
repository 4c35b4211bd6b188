"""What `sgl-router plugin check|test|bench|run` shows: tables and sentences of what was found.

Nothing is escaped here; `terminal.show` does that, of every text.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson

from sgl_router.cli.plugin_tables import microseconds, percent, text
from sgl_router.cli.terminal import Sheet, Shown

if TYPE_CHECKING:
    from sgl_router.devkit.bench import Bench
    from sgl_router.devkit.check import CheckedModule
    from sgl_router.devkit.single import SingleRun
    from sgl_router.devkit.trial import Trial
    from sgl_router.testing.answer import Answer


def checked(found: "CheckedModule") -> list[Shown]:
    """What a module is, and all that is wrong with it."""
    manifest = found.manifest or {}
    memory = "unknown" if found.memory_bytes is None else f"{found.memory_bytes:,} bytes"
    facts = [
        ("file", found.file),
        ("kind", found.kind or "no WebAssembly"),
        ("size", f"{found.size:,} bytes; at most {found.max_bytes:,}"),
        ("sha256", found.sha256),
        ("abi", text(found.abi)),
        ("memory at its start", f"{memory}; max_memory_bytes is {found.max_memory_bytes:,}"),
        ("imports", _imports(found)),
        ("exports", text(list(found.exports))),
        ("names of functions", "in it" if found.named else "not in it: backtraces have numbers"),
        ("manifest", "in it" if found.manifest is not None else "none"),
        *((f"  {key}", text(value)) for key, value in manifest.items()),
    ]
    parts: list[Shown] = [Sheet(("", ""), facts)]
    if found.accepted:
        return [*parts, "a router with these settings takes it"]
    rows = [(one.code, one.text) for one in found.problems]
    remedies = {one.code: one.remedy for one in found.problems}
    count = len(found.problems)
    return [
        *parts,
        f"a router with these settings refuses it, for {count} reason{'s' * (count > 1)}:",
        Sheet(("code", "found"), rows),
        Sheet(("code", "what to do"), list(remedies.items())),
    ]


def _imports(found: "CheckedModule") -> str:
    if not found.imports:
        return "nothing"
    said = []
    for one in found.imports:
        if one.granted:
            said.append(f"{one.name} (granted)")
        elif one.group is None:
            said.append(f"{one.name} (nothing grants it)")
        else:
            said.append(f"{one.name} (granted by {one.group})")
    return ", ".join(said)


def tried(trial: "Trial") -> list[Shown]:
    """What came of each test, then all that is known of those that failed."""
    report = trial.report
    rows = [(one.name, one.outcome, _first_line(one.detail)) for one in report.results]
    rows += [
        (f"tests/{one.golden.name}", one.outcome, _first_line("\n".join(one.problems) or None))
        for one in trial.golden
    ]
    parts: list[Shown] = [Sheet(("test", "result", ""), rows)]
    failed = [(one.name, one.rule, one.detail or "") for one in report.failed]
    failed += [
        (f"tests/{one.golden.name}", one.golden.description, "\n".join(one.problems))
        for one in trial.golden
        if one.outcome == "failed"
    ]
    told: dict[str, str] = {}
    for name, rule, detail in failed:
        first, _, rest = detail.partition("\n")
        parts += ["", f"{name} failed. {rule}", f"  {first}"]
        place = rest.rpartition("\nit was in")[2]  # what was printed has addresses in it
        if rest and told.setdefault(place, name) != name:
            rest = f"{_first_line(rest)}\nthe rest as of {told[place]}"
        parts += _indented(rest)
    if not trial.golden and report.abi is not None:
        parts.append("there are no golden decisions (tests/*.json)")
    counts = ", ".join(f"{trial.count(how):,} {how}" for how in ("passed", "failed", "skipped"))
    return [*parts, "", f"{report.plugin} ({text(report.abi)}): {counts}"]


def _first_line(detail: str | None) -> str:
    return (detail or "").partition("\n")[0]


def _indented(detail: str) -> Iterator[str]:
    """A sentence for each line: line ends within one would be escaped."""
    return (f"  {line}" for line in detail.splitlines())


def benched(bench: "Bench") -> list[Shown]:
    """A row for each number of workers."""
    columns = ("workers", "decisions", "p50", "p99", "at most", "memory, bytes", "of its budget")
    rows = [
        (
            text(row.workers),
            text(row.decisions),
            microseconds(row.p50_us),
            microseconds(row.p99_us),
            microseconds(row.max_us),
            text(row.memory_bytes or None),
            f"{percent(row.p50_share)} / {percent(row.p99_share)}",
        )
        for row in bench.rows
    ]
    where = "on the event loop" if bench.lane == "inline" else "on a thread of its own"
    parts: list[Shown] = [
        f"{bench.plugin} ({bench.abi}), which a router has decide {where}",
        Sheet(columns, rows, frozenset(columns)),
    ]
    if bench.rows:
        row = bench.rows[0]
        parts.append(
            f"the budget is {row.budget}, {row.budget_ms:,} ms; of it, what p50 and p99 take"
        )
    full = [row.workers for row in bench.rows if row.instances > 1]
    if bench.per_call:
        parts.append("each decision has an instance of its own, whose start is in these times")
    elif full:
        parts.append(
            f"among {', '.join(map(str, full))} workers its memory was full and its instance was "
            "replaced: raise max_memory_bytes, or free what a decision takes"
        )
    return parts


def ran(run: "SingleRun") -> list[Shown]:
    """One decision."""
    parts: list[Shown] = [
        "input, made up:" if run.made_up else "input:",
        *_json(run.given).splitlines(),
        *(f"the plugin is not told {key}: a router says nothing of it" for key in run.unsaid),
        *_answered(run.answer),
        "state before it:",
        *_json(run.given.get("state", {})).splitlines(),
        "state after it:",
        *_json(run.answer.state).splitlines(),
    ]
    if run.output and run.answer.failure is None:
        parts += ["it wrote:", *_indented(run.output)]
    return parts


def _json(value: object) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode("utf-8")


def _answered(answer: "Answer") -> list[Shown]:
    took = f"in {microseconds(answer.elapsed_us)}, {answer.memory_bytes:,} bytes of memory"
    if answer.failure is not None:
        return ["failed:", *_indented("\n".join(answer.failure.lines()))]
    parts: list[Shown] = [f"answer: {answer}, {took}"]
    if answer.late is not None:
        parts += ["after that it failed:", *_indented("\n".join(answer.late.lines()))]
    return parts
