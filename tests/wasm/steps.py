"""What stands for the module `os` in the store of uploaded plugins: it fails where a test says."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Crash(BaseException):
    """The process has died."""


class Steps:
    """Stands for the module `os`; can fail at a step, and does not wait for the disk.

    Args:
        hook: called before each step that reads or changes the disk, with its number from 0 and
            its name.
    """

    NAMES = frozenset({"open", "mkdir", "write", "fsync", "rename", "unlink", "scandir", "stat"})

    def __init__(self, hook: Callable[[int, str], None] = lambda number, name: None) -> None:
        self.trace: list[str] = []
        self._hook = hook
        self._steps = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return (
            (lambda *args, **kwargs: self._step(name, real, args, kwargs))
            if (name in self.NAMES)
            else real
        )

    def _step(self, name: str, real: Any, args: Any, kwargs: Any) -> Any:
        number, self._steps = self._steps, self._steps + 1
        self._hook(number, name)
        if name == "fsync":
            path = Path(f"/proc/self/fd/{args[0]}").readlink()
            self.trace.append(f"sync {path.name[:4] if path.name[0] == '.' else path.name}")
            return None
        if name == "rename":
            self.trace.append(f"rename {Path(args[1]).suffix}")
        return real(*args, **kwargs)


StandIn = Callable[[object], None]


def stand_in_by(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Puts something in the place of the store's `os`, for as long as the patch holds."""

    def use(steps: object) -> None:
        for module in ("store", "store_files"):
            monkeypatch.setattr(f"sgl_router.wasm.{module}.os", steps)

    return use
