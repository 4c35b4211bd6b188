"""A progress bar on standard error, for a terminal only."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from sgl_router.cli.escapes import escaped

Advance = Callable[[float, str], None]
"""Told how much is done, 0 to 1, and what is done next."""


@contextmanager
def progress_bar(doing: str) -> Iterator[Advance]:
    """Show a bar while the body works; nothing where standard error is no terminal."""
    if not sys.stderr.isatty():
        yield lambda _share, _what: None
        return

    from rich.console import Console  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[what]}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(escaped(doing), total=1.0, what="")

        def advance(share: float, what: str) -> None:
            progress.update(task, completed=share, what=escaped(what))

        yield advance
