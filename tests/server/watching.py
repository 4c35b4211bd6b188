"""A watched file, and what is heard of it."""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from sgl_router.server.watch import FileWatch
from tests.gateway.support import within

NEVER = 3600.0
QUICK: dict[str, Any] = {"settle_secs": 0.02, "step_ms": 10}


def read(path: str) -> bytes:
    """Refuses what is not a regular file, without waiting for what may be at its other end."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise ValueError("it is not a regular file")
        return os.read(fd, 1_000_000)
    finally:
        os.close(fd)


class Heard:
    """What was told, in its order: contents as bytes, problems as text."""

    def __init__(self) -> None:
        self.all: list[bytes | str] = []
        self.at_work = 0
        self.most_at_work = 0
        self.reads = 0
        self.after_read: Callable[[bytes], None] = lambda _data: None
        self.during_change: Callable[[], Awaitable[object]] = self._nothing
        self._loop = asyncio.get_running_loop()
        self._more = asyncio.Condition()

    async def change(self, path: str, data: bytes, digest: str) -> None:
        assert digest == sha256(data).hexdigest()
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        self.all.append(data)
        await self._wake()
        try:
            await self.during_change()
        finally:
            self.at_work -= 1
            self._wake_later()

    def problem(self, path: str, sentence: str) -> None:
        self.all.append(sentence)
        self._wake_later()

    def read(self, path: str) -> bytes:
        """Called in a thread."""
        try:
            data = read(path)
            self.after_read(data)
            return data
        finally:
            self.reads += 1
            self._loop.call_soon_threadsafe(self._wake_later)

    async def another_read(self, cause: Callable[[], object]) -> None:
        """Do something that has the file read."""
        seen = self.reads
        cause()
        await self.until(lambda: self.reads > seen)

    async def until(self, condition: Callable[[], object]) -> None:
        async with self._more:
            await within(self._more.wait_for(condition))

    async def count(self, number: int) -> None:
        await self.until(lambda: len(self.all) >= number)

    async def read_again(self, times: int = 1) -> None:
        """A read that began after this was called has ended: one may have been under way."""
        wanted = self.reads + times + 1
        await self.until(lambda: self.reads >= wanted)

    def _wake_later(self) -> None:
        self._waking = self._loop.create_task(self._wake())

    async def _wake(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def _nothing(self) -> None:
        pass


def failing_watch(*_paths: str, **_options: object) -> Iterator[object]:
    raise OSError(28, "No space left on device")


@asynccontextmanager
async def watching(path: Path | str, in_use: bytes, **options: Any) -> AsyncIterator[Heard]:
    """One file is watched, and has been read once."""
    heard = Heard()
    files = FileWatch(heard.change, heard.problem, heard.read, **options)
    files.add(str(path), sha256(in_use).hexdigest())
    files.start()
    try:
        await heard.until(lambda: heard.reads)
        yield heard
    finally:
        await within(files.stop())


def by_rename(path: Path, data: bytes) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(data)
    beside.rename(path)
