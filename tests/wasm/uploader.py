"""A process that uploads one version after the other until it is killed, and who kills it.

    python -m tests.wasm.uploader FOLDER NAME

A line `FIRST COUNT` on its standard input starts a fork that puts the versions FIRST, FIRST + 1, …
into the store, COUNT of them or, for 0, until it is killed. It answers `pid N`, `begin N` before
and `done N MICROSECONDS` after each version, and `ended STATUS` when the fork has ended. To kill a
fork of a process that has imported everything costs no start of Python.
"""

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from sgl_router.wasm.store import PluginStore, StoredPlugin, StoredVersion, StoreError

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_BYTES = 100_000

FIRST_GUESS_SECS = 0.005
"""What an upload takes, until one was measured."""


def content(number: int) -> bytes:
    """The module of a version; as good as any to a store, which does not look into it."""
    rng = random.Random(number)
    return b"\0asm\1\0\0\0" + rng.randbytes(rng.randrange(MOST_BYTES))


def settings(number: int) -> dict[str, Any]:
    return {"config": {"number": number}, "max_execution_time_ms": 100}


def number_of(version: StoredVersion) -> int:
    """Which version it is; raises AssertionError where its parts are not of one."""
    number = version.settings["config"]["number"]
    assert version.settings == settings(number), version.settings
    assert version.sha256 == hashlib.sha256(content(number)).hexdigest(), number
    assert version.stored_at_ms == number, version
    assert isinstance(number, int)
    return number


# ---- the process


def upload(store: PluginStore, name: str, first: int, count: int) -> None:
    number = first
    while not count or number < first + count:
        _say(f"begin {number}")
        began = time.perf_counter_ns()
        store.put(name, content(number), settings(number), now_ms=number)
        _say(f"done {number} {(time.perf_counter_ns() - began) // 1000}")
        number += 1


def _say(line: str) -> None:
    os.write(1, f"{line}\n".encode())  # one write, which death does not cut


def main(folder: str, name: str) -> None:
    for line in sys.stdin:
        first, count = map(int, line.split())
        pid = os.fork()
        if not pid:
            status = 1
            try:
                _say(f"pid {os.getpid()}")
                upload(PluginStore(Path(folder), lock_wait_secs=60), name, first, count)
                status = 0
            finally:
                os._exit(status)
        _say(f"ended {os.waitpid(pid, 0)[1]}")


# ---- who kills it


@dataclass(frozen=True, slots=True)
class Death:
    """The last version whose upload was begun, and the last that was said to be kept."""

    begun: int
    done: int


class Target(Protocol):
    """What is uploaded to, and killed."""

    def upload_until_killed(self, first: int, uploads: int, share: float) -> Death:
        """Kill it at `share` of the time that an upload takes, after so many whole ones."""

    def found(self) -> int | None:
        """The version that is there now, None for none; raises AssertionError: it is not whole."""


class Uploader:
    """The process above, until the context is left."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = name
        self._upload_secs = FIRST_GUESS_SECS
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.wasm.uploader", str(folder), name],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def __enter__(self) -> "Uploader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def start(self, first: int, count: int) -> int:
        """The process id of the fork."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{first} {count}\n")
        verb, pid = next(self.words())
        assert verb == "pid", verb
        return int(pid)

    def words(self) -> Iterator[list[str]]:
        """Of each line, up to `ended`."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            yield line.split()
            if line.startswith("ended"):
                return
        raise AssertionError(f"the uploader of {self._name} has ended")

    def upload_until_killed(self, first: int, uploads: int, share: float) -> Death:
        pid = self.start(first, 0)
        begun = done = first - 1
        for verb, number, *more in self.words():
            if verb == "begin":
                begun = int(number)
                if begun == first + uploads:
                    time.sleep(share * self._upload_secs)
                    os.kill(pid, signal.SIGKILL)
            elif verb == "done":
                done = int(number)
                self._upload_secs = int(more[0]) / 1e6
            elif verb == "ended":
                assert int(number) == signal.SIGKILL, f"it ended with the status {number}"
        return Death(begun, done)

    def found(self) -> int | None:
        store = PluginStore(self._folder)
        plugins, complaints = store.list()
        assert not complaints, complaints
        loaded = store.load(self._name)
        if loaded is None:
            assert not plugins, plugins
            return None
        plugin, wasm = loaded
        assert plugins == [plugin], plugins
        number = number_of(plugin.current)
        assert wasm == content(number)
        _check_previous(store, plugin, number)
        return number


def _check_previous(store: PluginStore, plugin: StoredPlugin, number: int) -> None:
    if plugin.previous is None:
        assert number == 1, f"version {number} has no previous one"
        return
    assert number_of(plugin.previous) == number - 1
    try:
        assert store.read_module(plugin.previous.sha256) == content(number - 1)
    except StoreError as error:
        raise AssertionError(str(error)) from error


@dataclass
class Tally:
    """What came of it.

    Attributes:
        uploads: begun.
        kills: of the process.
        within: kills in the middle of an upload.
        kept: those of them after which the version that was being uploaded was there.
        violations: of the promise that the old or the new version is there, whole.
    """

    uploads: int = 0
    kills: int = 0
    within: int = 0
    kept: int = 0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.uploads:,} uploads, {self.kills:,} kills, {self.within:,} of them within an "
            f"upload, after which {self.within - self.kept:,} times the old version was there and "
            f"{self.kept:,} times the new one; {len(self.violations)} violations"
        )


def kill_uploads(target: Target, uploads: int, rng: random.Random, most: int = 6) -> Tally:
    """Kill at random points until so many uploads were begun; looks at what is there each time.

    Args:
        most: whole uploads before a kill.
    """
    tally = Tally()
    there = 0
    while tally.uploads < uploads and not tally.violations:
        death = target.upload_until_killed(there + 1, rng.randrange(most), rng.random() * 1.3)
        tally.uploads += death.begun - there
        tally.kills += 1
        try:
            found = target.found() or 0
        except (AssertionError, StoreError) as error:
            tally.violations.append(f"after {death}: {error}")
            continue
        if death.done < death.begun:
            tally.within += 1
            tally.kept += found == death.begun
        if found not in (death.done, death.begun):
            tally.violations.append(f"after {death}: version {found}")
        there = found
    return tally


if __name__ == "__main__":
    main(*sys.argv[1:])
