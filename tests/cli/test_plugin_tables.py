"""Tables of plugins: whatever JSON came, something is shown, and nothing of it is a control."""

import json
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sgl_router.cli import plugin_tables
from sgl_router.cli.escapes import escaped, escaped_json
from sgl_router.cli.terminal import Sheet, Shown, show

TABLES: list[Callable[[Any], list[Shown]]] = [
    plugin_tables.plugin_list,
    plugin_tables.plugin_details,
    plugin_tables.put_result,
    plugin_tables.rolled_back,
    plugin_tables.unloaded,
    plugin_tables.policies_in_use,
    plugin_tables.shadow_report,
]
KEYS = (
    *("plugins", "plugin", "name", "current", "previous", "id", "settings", "failures", "status"),
    *("in_use_as", "quarantine", "state", "left_ms", "loaded_at_ms", "since_ms", "source", "kind"),
    *("last_failure_detail", "output", "backtrace"),
    *("shadow", "workers", "share", "decision_us", "p50", "self_test", "elapsed_us", "policies"),
)
TEXTS = st.text(max_size=20) | st.sampled_from(("open", "closed", "half_open", "\x1b[2J"))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXTS
)
ANSWERS = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=6)
    ),
    max_leaves=30,
)


@given(answer=ANSWERS.map(lambda value: json.loads(json.dumps(value))))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_json_is_shown(answer: Any, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        answer = orjson.loads(orjson.dumps(answer))
    except orjson.JSONEncodeError:  # a lone surrogate, which no answer that is read has
        return
    for table in TABLES:
        parts = table(answer)
        assert parts
        assert all(
            len(row) == len(part.columns)
            for part in parts
            if isinstance(part, Sheet)
            for row in part.rows
        )
        show(parts)
        told = capsys.readouterr().out
        assert told
        assert all(char.isprintable() or char == "\n" for char in told)
        assert all(line == line.rstrip() for line in told.splitlines())


@given(value=ANSWERS, indent=st.sampled_from((None, 2, "\t")), escapes=st.booleans())
def test_escaped_json_says_the_same(value: Any, indent: int | str | None, escapes: bool) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escapes)
    safe = escaped_json(text.replace("\n", "\r\n"))
    assert json.loads(safe) == value
    assert all(char.isprintable() or char in "\n\t" for char in safe)


@given(st.text())
def test_escapes_are_printable_and_leave_what_is(text: str) -> None:
    assert escaped(text).isprintable()
    assert (escaped(text) == text) == text.isprintable()


def test_a_long_text_is_cut() -> None:
    assert escaped("a" * 9, limit=4) == "aaaa… (9 characters)"
    assert len(plugin_tables.text("a" * 10_000)) < 1_000


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "–"),
        ("", "–"),
        ([], "–"),
        ({}, "–"),
        (0, "0"),
        (False, "no"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.25, "0.25"),
        (["a", "b"], "a, b"),
        ({"trap": 1200, "timeout": 1}, "trap 1,200, timeout 1"),
        ({"a": True}, '{"a":true}'),
        ([1, None], "[1,null]"),
    ],
)
def test_values(value: Any, told: str) -> None:
    assert plugin_tables.text(value) == told


@pytest.mark.parametrize(
    ("value", "told"),
    [(0, "0.0 µs"), (3.21, "3.2 µs"), (41_000, "41.0 ms"), (2.5e9, "2,500.0 s"), (None, "–")],
)
def test_times(value: Any, told: str) -> None:
    assert plugin_tables.microseconds(value) == told


@pytest.mark.parametrize(
    ("unix_ms", "told"),
    [(0, "1970-01-01 00:00:00 UTC"), (2**63, f"{2**63:,}"), ("x", "x"), (None, "–")],
)
def test_moments(unix_ms: Any, told: str) -> None:
    assert plugin_tables.moment(unix_ms) == told
