"""What a command shows: tables and sentences, safe for a terminal whoever wrote them."""

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sgl_router.cli.escapes import escaped

_PIPED_WIDTH = 1_000_000
"""Characters of a line that no terminal shows: more than any row has, so that none is folded."""

_LINE_END = re.compile(r" +$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table.

    Attributes:
        columns: their headings; a table of names and values has empty ones, and shows none.
        rows: a text for each column.
        numbers: headings of the columns that stand at the right.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[str] = field(default_factory=frozenset)


Shown = Sheet | str
"""A table, or a sentence."""


def show(parts: Iterable[Shown]) -> None:
    """Write to standard output: for a terminal with lines and folds, else plain and aligned."""
    terminal = sys.stdout.isatty()
    console = Console(
        file=sys.stdout,
        width=None if terminal else _PIPED_WIDTH,
        force_terminal=terminal,
        no_color=None if terminal else True,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as captured:
        for number, part in enumerate(parts):
            if number and isinstance(part, Sheet) and not terminal:
                console.print()  # where it has no lines around it
            if isinstance(part, str):
                console.print(Text(escaped(part)), soft_wrap=True)
            else:
                console.print(_table(part, terminal))
    text = captured.get()
    write(text if terminal else _LINE_END.sub("", text))


def write(text: str) -> None:
    """Write to standard output, with escapes for what its encoding does not have."""
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
    sys.stdout.flush()


def _table(sheet: Sheet, terminal: bool) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD if terminal else None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
        show_header=any(sheet.columns),
        header_style="bold" if terminal else "",
    )
    for column in sheet.columns:
        table.add_column(
            Text(escaped(column)),
            justify="right" if column in sheet.numbers else "left",
            overflow="fold",
        )
    for row in sheet.rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))
    return table
