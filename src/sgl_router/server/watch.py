"""Tells when the content of a file has changed, however it was replaced.

inotify, through watchfiles, gives the hint that something has happened. It sees nothing on a
network file system, loses a folder that is mounted over and has limits which other programs can use
up, so that a slow look at the files' time stamps is the net below it. Neither is believed: what is
told is what a file was read to contain, twice, a moment apart.
"""

import asyncio
import hashlib
import logging
import stat
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from watchfiles import Change, watch

LOOK_SECS = 3.0  # between two looks at the files where nothing hints at a change
SETTLE_SECS = 0.2  # content that is told has been the same for so long
STEP_MS = 100  # between two questions for hints; each takes the GIL, so not watchfiles' 50
DEBOUNCE_MS = 200  # a hint waits for so long where others keep coming
STOP_SECS = 1.0  # a thread that a file system holds up is left behind after so long
MAX_LINKS = 40  # what Linux follows on one path (path_resolution(7))
RACY_NS = 2_000_000_000
"""A file changed so recently may change again without its time stamps showing it: they have steps
of up to two seconds (FAT). Git calls such a file racily clean."""

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class FileWatch:
    """Tells when the content of a file has changed, and what it is; one event loop's.

    Args:
        on_change: given path, content and SHA-256 (hexadecimal) of each content that stands still
            and is not the one in use; awaited, one at a time for a file. What has been told counts
            as in use, whatever became of it. What it raises is logged.
        on_problem: given path and, in one sentence, why the file cannot be read, once for each
            problem; and "" when it can be read again. Must not raise.
        read: the content of the file at a path; called in a thread. Must not block on a FIFO or a
            device; raises OSError or ValueError.
        look_secs, settle_secs, step_ms: as `LOOK_SECS`, `SETTLE_SECS` and `STEP_MS`.
    """

    def __init__(
        self,
        on_change: Callable[[str, bytes, str], Awaitable[None]],
        on_problem: Callable[[str, str], None],
        read: Callable[[str], bytes],
        *,
        look_secs: float = LOOK_SECS,
        settle_secs: float = SETTLE_SECS,
        step_ms: int = STEP_MS,
    ) -> None:
        self._on_change = on_change
        self._on_problem = on_problem
        self._read = read
        self._look_secs = look_secs
        self._settle_secs = settle_secs
        self._step_ms = step_ms
        self._files: dict[str, _File] = {}
        self._awake = asyncio.Event()
        self._hinted: set[str] = set()
        self._folders: _FolderWatch | None = None
        self._failed = False
        self._task: asyncio.Task[None] | None = None
        # One thread: a file system that hangs holds up this watch and nothing else.
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="file-read")

    def add(self, path: str, digest: str) -> None:
        """Watch a file of whose content `digest` is in use; of one that is watched, change that."""
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = _File(path, Path(path).absolute(), digest)
        file.digest = digest
        file.wanted = True
        file.trail = None  # so that the next look has it read
        self._awake.set()

    def discard(self, path: str) -> None:
        """Tell nothing more of a file; what `on_change` is at work on it still finishes."""
        file = self._files.get(path)
        if file is None:
            return
        file.wanted = False
        if file.task is None:
            del self._files[path]
        self._awake.set()

    def start(self) -> None:
        """Begin to watch; once."""
        assert self._task is None, "started once"
        self._task = asyncio.get_running_loop().create_task(self._keep_looking())

    async def stop(self) -> None:
        """Tell nothing more, and end every task and thread; an `on_change` at work is cancelled."""
        tasks = [file.task for file in self._files.values() if file.task is not None]
        if self._task is not None:
            tasks.append(self._task)
        for task in tasks:
            task.cancel()
        for end in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(end, Exception):
                _log.error("watching the files failed", exc_info=end)
        try:
            async with asyncio.timeout(STOP_SECS) as limit:
                if self._folders is not None:
                    await self._folders.stop()
                await self._in_thread(lambda: None)  # what it is reading has been read
        except TimeoutError:
            _log.warning("a file system does not answer: its reading is left to end by itself")
        self._reader.shutdown(wait=not limit.expired(), cancel_futures=True)

    # ---- looking

    async def _keep_looking(self) -> None:
        while True:
            await self._look()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._look_secs):
                    await self._awake.wait()
            self._awake.clear()

    async def _look(self) -> None:
        """Have each file read that has changed by its time stamps or by a hint."""
        hinted, self._hinted = self._hinted, set()
        before = [(file, file.trail) for file in self._files.values()]
        trails = await self._in_thread(lambda: [_trail(file.absolute) for file, _ in before])
        for (file, old), trail in zip(before, trails, strict=True):
            if not file.wanted or file.trail is not old:
                continue  # discarded or added anew in the meantime
            file.trail = trail
            shows = old is None or trail.signature != old.signature or hinted & old.entries
            if shows or trail.signature is None or file.problem:
                self._check(file)
        await self._watch_folders(trails, hinted)

    async def _watch_folders(self, trails: Iterable["_Trail"], hinted: set[str]) -> None:
        """Ask for hints of the folders that the files' paths lead through."""
        folders = frozenset[tuple[str, int, int]]().union(*(trail.folders for trail in trails))
        entries = frozenset[str]().union(*(trail.entries for trail in trails))
        if (watched := self._folders) is not None:
            if watched.ended.is_set():
                self._say_failed(watched.error)
            elif watched.folders == folders and not hinted & watched.paths:
                if not entries <= watched.entries:
                    self._awake.set()  # what happened to them since they were looked at
                watched.entries = entries
                return
            await watched.stop()
            self._folders = None
        if folders:
            self._folders = _FolderWatch(folders, entries, self._take_hint, self._step_ms)

    def _say_failed(self, error: str) -> None:
        if not self._failed:
            self._failed = True
            _log.warning(
                "cannot watch folders: %s; files are looked at every %g s instead (the limits are "
                "the sysctls fs.inotify.max_user_watches and max_user_instances)",
                error,
                self._look_secs,
            )

    def _take_hint(self, path: str | None) -> None:
        if path is not None:
            self._hinted.add(path)
        self._awake.set()

    # ---- one file

    def _check(self, file: "_File") -> None:
        file.changed = True
        if file.task is None:
            file.task = asyncio.get_running_loop().create_task(self._follow(file))

    async def _follow(self, file: "_File") -> None:
        """Tell of one file for as long as it changes; the one task that does."""
        try:
            while file.wanted and file.changed:
                file.changed = False
                await self._tell(file, await self._settled(file))
        finally:
            file.task = None
            if not file.wanted:
                del self._files[file.path]

    async def _settled(self, file: "_File") -> "_Content":
        """What a file contains, once that is no news or stands still."""
        found = await self._in_thread(lambda: _content(self._read, file.path))
        while file.wanted and _is_news(file, found):
            last = (found.digest, found.problem)
            await asyncio.sleep(self._settle_secs)
            found = await self._in_thread(lambda: _content(self._read, file.path))
            if (found.digest, found.problem) == last:
                break
        return found

    async def _tell(self, file: "_File", found: "_Content") -> None:
        if not file.wanted or not _is_news(file, found):
            return
        if found.problem != file.problem:
            file.problem = found.problem
            self._on_problem(file.path, found.problem)
        if found.problem or found.digest == file.digest:
            return
        file.digest = found.digest
        try:
            await self._on_change(file.path, found.data, found.digest)
        except Exception:  # noqa: BLE001 (one file's trouble is not the others')
            _log.exception("the change of %s was not taken", file.path)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._reader, work)


@dataclass(slots=True, eq=False)
class _File:
    """One watched file."""

    path: str  # as it was given
    absolute: Path
    digest: str  # of the content in use
    problem: str = ""  # what was last told of it
    trail: "_Trail | None" = None  # where its path led at the last look
    changed: bool = False  # it is to be read
    wanted: bool = True  # it has not been discarded
    task: asyncio.Task[None] | None = None  # reads it and tells of it, while there is something to


@dataclass(frozen=True, slots=True)
class _Content:
    """What a file was read to contain, or why it could not be read."""

    data: bytes = b""
    digest: str = ""  # where it could not be
    problem: str = ""


def _content(read: Callable[[str], bytes], path: str) -> _Content:
    try:
        data = read(path)
    except (OSError, ValueError) as error:
        # Without an OSError's path, which may be a descriptor's number, another each time.
        return _Content(
            problem=f"the file cannot be read: {getattr(error, 'strerror', None) or error}"
        )
    return _Content(data, hashlib.sha256(data).hexdigest())


def _is_news(file: _File, found: _Content) -> bool:
    return found.problem != file.problem or found.digest not in ("", file.digest)


@dataclass(frozen=True, slots=True)
class _Trail:
    """Where a path leads.

    Attributes:
        entries: each link on the way and the file, or the first thing that is missing, as full
            paths whose folders are free of links.
        folders: the folders of the entries, each with its device and inode.
        signature: what changes when the file does; None where it may change without.
    """

    entries: frozenset[str]
    folders: frozenset[tuple[str, int, int]]
    signature: tuple[int, ...] | None


def _trail(path: Path) -> _Trail:
    """Follow an absolute path, link by link."""
    entries = _entries(path)
    folders = set()
    for folder in {entry.parent for entry in entries}:
        with suppress(OSError):  # gone since: the path is looked at again
            found = folder.stat()
            folders.add((str(folder), found.st_dev, found.st_ino))
    return _Trail(frozenset(map(str, entries)), frozenset(folders), _signature(path))


def _entries(path: Path) -> list[Path]:
    root, *names = path.parts
    folder, ahead, entries, links = Path(root), deque(names), list[Path](), 0
    while ahead:
        name = ahead.popleft()
        if name == "..":
            folder = folder.parent
            continue
        entry = folder / name
        try:
            mode = entry.lstat().st_mode
            target = entry.readlink() if stat.S_ISLNK(mode) else None
        except (OSError, ValueError):  # missing, not to be seen, or no path at all
            return [*entries, entry]
        if target is not None and links < MAX_LINKS:
            links += 1
            entries.append(entry)
            folder = Path(root) if target.is_absolute() else folder
            ahead.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        elif ahead and stat.S_ISDIR(mode):
            folder = entry
        else:
            return [*entries, entry]
    return entries


def _signature(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):  # reading it says why
        return None
    if time.time_ns() - found.st_ctime_ns < RACY_NS:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class _FolderWatch:
    """Hints from watchfiles, in a thread, until it is stopped, fails, or its loop is closed.

    `awatch` would do it in a thread of anyio's, which outlives it.

    Args:
        folders: as of `_Trail`.
        entries: those whose changes are told; may be replaced at any time.
        tell: called on the event loop with an entry that has changed or a folder that is gone, and
            with None once the folders are watched.

    Attributes:
        ended: set when the thread is about to end.
        error: why it did.
    """

    def __init__(
        self,
        folders: frozenset[tuple[str, int, int]],
        entries: frozenset[str],
        tell: Callable[[str | None], None],
        step_ms: int,
    ) -> None:
        self.folders = folders
        self.entries = entries
        self.paths = frozenset(path for path, _, _ in folders)
        self.ended = asyncio.Event()
        self.error = ""
        self._tell = tell
        self._step_ms = step_ms
        self._begun = False
        self._stopped = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="file-watch")
        self._thread.start()

    async def stop(self) -> None:
        self._stopped = True
        await self.ended.wait()
        self._thread.join()

    def is_set(self) -> bool:
        """Whether to stop: asked by watchfiles at each step, the first time when it watches."""
        if not self._begun:
            self._begun = True
            self._on_loop(lambda: self._tell(None))
        return self._stopped or self._loop.is_closed()

    def _filter(self, change: Change, path: str) -> bool:
        """Takes the hint and lets nothing pass: watchfiles logs each change that does."""
        if path in self.entries or (change is Change.deleted and path in self.paths):
            self._on_loop(lambda: self._tell(path))
        return False

    def _run(self) -> None:
        try:
            for _ in watch(
                *sorted(self.paths),
                watch_filter=self._filter,
                debounce=DEBOUNCE_MS,
                step=self._step_ms,
                stop_event=self,
                rust_timeout=0,
                recursive=False,
                ignore_permission_denied=True,
            ):
                pass
        except (OSError, RuntimeError, ValueError) as error:
            self.error = str(error)
        finally:
            self._on_loop(self.ended.set)

    def _on_loop(self, work: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(work)
