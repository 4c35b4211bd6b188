"""Plugins that were uploaded, kept on disk and found again after a restart.

    FOLDER/
        lock                     held by whoever writes (flock)
        modules/SHA256.wasm      a module, named by its content
        plugins/NAME.json        a plugin: the version in use, and the one before it

A module is on the disk before a manifest names it, and a manifest is replaced by one rename. So
whenever a writer dies, a reader finds the old version or the new one, whole; what the writer left
over is removed by the next one. Readers take no lock.

Who can write to the folder decides what the router runs: it is refused where somebody else could.
All of it blocks: it is called from threads.
"""

import hashlib
import logging
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sgl_router.wasm.config import is_digest
from sgl_router.wasm.module import MAX_COMPONENT_BYTES, most_bytes
from sgl_router.wasm.printable import printable, shown
from sgl_router.wasm.store_files import (
    TEMPORARY,
    age_secs,
    lock_folder,
    make_folder,
    names_in,
    open_folder,
    read_file,
    write_file,
)
from sgl_router.wasm.stored import (
    MAX_MANIFEST_BYTES,
    StoredPlugin,
    StoredVersion,
    StoreError,
    as_json,
    check_name,
    decode,
    encode,
    is_manifest,
    same,
)

__all__ = [
    "Listing",
    "PluginStore",
    "StoreError",
    "StoredPlugin",
    "StoredVersion",
    "default_store_folder",
]

LOCK_WAIT_SECS = 5.0
"""A writer holds the lock for some 20 ms on a disk, longer where the disk is slow to sync."""

STALE_TEMPORARY_SECS = 3600
"""Nobody should be writing while the lock is held, but not every network file system has locks."""

_READS = 10  # of one manifest that is replaced, and its modules removed, while it is being read
_DIGESTS = re.compile(rb"[0-9a-f]{64}")

_log = logging.getLogger(__name__)


Listing = tuple[list[StoredPlugin], list[str]]
"""The plugins by name, and a sentence for each manifest that cannot be used as it is."""


@dataclass(frozen=True, slots=True)
class _Folders:
    """Descriptors of the store's folders, whose owner and mode were checked."""

    modules: int
    plugins: int


class PluginStore:
    """Uploaded plugins in one folder, which several processes may use.

    Every method raises StoreError where the folder belongs to somebody else, is writable by others,
    or fails. To read makes no folder: one that does not exist is an empty store.

    Args:
        folder: made, readable by its owner only, when something is first put into it.
        lock_wait_secs: how long to wait for another writer.
    """

    def __init__(self, folder: Path, *, lock_wait_secs: float = LOCK_WAIT_SECS) -> None:
        self.folder = folder
        self._lock_wait_secs = lock_wait_secs

    def __repr__(self) -> str:
        return f"PluginStore({str(self.folder)!r})"

    def list(self) -> Listing:
        """All that is there; what is damaged is told of, and never raises.

        That each module is there is looked at; its content is verified by who reads it.
        """
        plugins, complaints = [], []
        with self._reading() as folders:
            entries = [] if folders is None else names_in(folders.plugins)
            for entry in entries:
                if folders is None or not is_manifest(entry):
                    continue
                try:
                    plugin, complaint = self._look(folders, entry.removesuffix(".json"))
                except FileNotFoundError:  # removed since the folder was read
                    continue
                except (StoreError, OSError) as error:
                    complaints.append(self._unusable(entry, error))
                    continue
                plugins.append(plugin)
                if complaint is not None:
                    complaints.append(self._unusable(entry, complaint))
        return plugins, complaints

    def load(self, name: str) -> tuple[StoredPlugin, bytes] | None:
        """A plugin and the module of its current version; None where there is no such plugin.

        Unlike `list` and then `read_module`, it is not disturbed by who replaces the plugin
        meanwhile. Raises StoreError where the plugin is damaged.
        """
        check_name(name)
        with self._reading() as folders:
            if folders is None:
                return None
            for _ in range(_READS):
                try:
                    plugin, _complaint = self._look(folders, name)
                except FileNotFoundError:
                    return None
                except StoreError as error:
                    raise StoreError(self._unusable(f"{name}.json", error)) from error
                with suppress(FileNotFoundError):  # replaced twice since its manifest was read
                    return plugin, _read_module(folders, plugin.current.sha256)
        raise StoreError(f"plugin {name!r} is replaced faster than it can be read; try again")

    def read_module(self, sha256: str) -> bytes:
        """A module's bytes, which have that digest; raises StoreError where it is not there."""
        if not is_digest(sha256):
            raise StoreError(f"a module's digest is {shown(sha256)}; expected 64 digits, 0-9 a-f")
        with self._reading() as folders, suppress(FileNotFoundError):
            if folders is not None:
                return _read_module(folders, sha256)
        raise StoreError(f"module {sha256} is not in the plugin store {self.folder}")

    def put(
        self,
        name: str,
        wasm: bytes,
        settings: Mapping[str, Any],
        *,
        replaces: str | None = None,
        now_ms: int,
    ) -> StoredPlugin:
        """Keep a version as the current one; the one before it becomes the previous one.

        With the bytes and settings of the current version, both versions stay as they are.

        Args:
            name: the plugin's; what is damaged under it is replaced.
            wasm: the module, which is not looked into.
            settings: anything that JSON can say in 256 KiB.
            replaces: the SHA-256 of the plugin's file that this upload takes the place of.
            now_ms: Unix time, for `StoredVersion.stored_at_ms`.

        Raises StoreError: then the plugin is what it was, unless it is the disk that fails at the
        last step, after which it may be either.
        """
        check_name(name)
        most = most_bytes(wasm)
        if not 0 < len(wasm) <= most:
            raise StoreError(f"the module has {len(wasm):,} bytes; expected 1 to {most:,}")
        new = StoredVersion(hashlib.sha256(wasm).hexdigest(), as_json(settings), now_ms)
        with self._writing() as folders:
            before = self._before(folders, name)
            if before is not None and same(before.current, new):
                after = (
                    before if before.replaces == replaces else replace(before, replaces=replaces)
                )
            else:
                previous = None if before is None else _present(folders, before.current)
                after = StoredPlugin(name, new, previous, replaces)
            manifest = encode(after)
            _keep_module(folders, new.sha256, wasm)
            if after is not before:
                write_file(folders.plugins, f"{name}.json", manifest)
            return after

    def set_current(
        self,
        name: str,
        current: StoredVersion,
        previous: StoredVersion | None,
        *,
        replaces: str | None,
    ) -> StoredPlugin:
        """Change which versions a plugin has, as a rollback does; `replaces` is as in `put`.

        Raises StoreError where there is no such plugin, or where a module of theirs is missing.
        """
        check_name(name)
        for version in filter(None, (current, previous)):
            as_json(version.settings)
        with self._writing() as folders:
            before = self._before(folders, name)
            if before is None:
                raise StoreError(f"plugin {name!r} is not in the plugin store {self.folder}")
            for version in filter(None, (current, previous)):
                if _present(folders, version) is None:
                    raise StoreError(
                        f"module {shown(version.sha256)} of plugin {name!r} is not in the plugin "
                        f"store {self.folder}; upload it again"
                    )
            after = replace(before, current=current, previous=previous, replaces=replaces)
            write_file(folders.plugins, f"{name}.json", encode(after))
            return after

    def remove(self, name: str) -> bool:
        """Forget a plugin, damaged or not; False where there is none of that name.

        That none is there is said without the lock: a store that does not exist is not made.
        """
        check_name(name)
        with self._reading() as folders:
            if folders is None:
                return False
        with self._writing() as folders:
            try:
                os.unlink(f"{name}.json", dir_fd=folders.plugins)
            except FileNotFoundError:
                return False
            os.fsync(folders.plugins)
            return True

    # ---- folders and the lock

    @contextmanager
    def _reading(self) -> Iterator[_Folders | None]:
        """The folders; None where the store does not exist, or is just being made."""
        with self._failing("read"), ExitStack() as stack:
            try:
                top = _kept(stack, open_folder(self.folder))
                plugins = _kept(stack, open_folder(self.folder / "plugins", top))
            except FileNotFoundError:
                yield None
                return
            modules = plugins  # for a store that has lost its modules: none is in there either
            with suppress(FileNotFoundError):
                modules = _kept(stack, open_folder(self.folder / "modules", top))
            yield _Folders(modules, plugins)

    @contextmanager
    def _writing(self) -> Iterator[_Folders]:
        """The folders, made where they are missing, with the lock; sweeps at the end."""
        with self._failing("write to"), ExitStack() as stack:
            make_folder(self.folder)
            top = _kept(stack, open_folder(self.folder))
            _kept(stack, lock_folder(top, self.folder, self._lock_wait_secs))
            for name in ("modules", "plugins"):  # in this order: readers look for the second
                with suppress(FileExistsError):
                    os.mkdir(name, 0o700, dir_fd=top)
            os.fsync(top)
            modules, plugins = (
                _kept(stack, open_folder(self.folder / name, top))
                for name in ("modules", "plugins")
            )
            folders = _Folders(modules, plugins)
            try:
                yield folders
            finally:
                _sweep(folders)

    @contextmanager
    def _failing(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreError(f"cannot {verb} the plugin store {self.folder}: {error}") from error

    # ---- manifests

    def _look(self, folders: _Folders, name: str) -> tuple[StoredPlugin, str | None]:
        """A plugin whose current module is there, and what is wrong with it nevertheless.

        Raises StoreError where it cannot be used, FileNotFoundError where there is none.
        """
        last = None
        for _ in range(_READS):
            raw = read_file(folders.plugins, f"{name}.json", MAX_MANIFEST_BYTES)
            plugin = decode(name, raw)
            current = _present(folders, plugin.current)
            previous = plugin.previous and _present(folders, plugin.previous)
            if current is not None and previous == plugin.previous:
                return plugin, None
            if raw == last:  # not only replaced, and its modules swept, between the two looks
                break
            last = raw
        if current is None:
            raise StoreError(f"its module {plugin.current.sha256} is missing")
        gone = "its previous version's module is missing, so that there is nothing to return to"
        return replace(plugin, previous=None), gone

    def _before(self, folders: _Folders, name: str) -> StoredPlugin | None:
        """What the manifest says; None where there is none, or a damaged one."""
        try:
            return decode(name, read_file(folders.plugins, f"{name}.json", MAX_MANIFEST_BYTES))
        except FileNotFoundError:
            return None
        except StoreError as error:
            _log.warning("replacing %s", self._unusable(f"{name}.json", error))
            return None

    def _unusable(self, entry: str, why: object) -> str:
        return f"{printable(str(self.folder / 'plugins' / entry))}: {why}; upload the plugin again"


def _kept(stack: ExitStack, fd: int) -> int:
    """A descriptor that is closed with the others."""
    stack.callback(os.close, fd)
    return fd


def default_store_folder() -> Path | None:
    """Where uploads are kept unless it is said otherwise; None where there is no home.

    `$STATE_DIRECTORY` is systemd's, the first of several (systemd.exec(5), StateDirectory=);
    `$XDG_STATE_HOME` counts if it is absolute (XDG Base Directory Specification 0.8).
    """
    if given := os.environ.get("STATE_DIRECTORY", "").split(":")[0]:
        return Path(given) / "plugins"
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if not state.is_absolute():
        try:
            state = Path.home() / ".local" / "state"
        except RuntimeError:
            return None
    return state / "sgl-router" / "plugins"


def _read_module(folders: _Folders, sha256: str) -> bytes:
    """Raises FileNotFoundError, and StoreError where the content is not what the name says."""
    try:
        wasm = read_file(folders.modules, f"{sha256}.wasm", MAX_COMPONENT_BYTES)
    except StoreError as error:
        raise StoreError(f"the stored module {sha256}: {error}; upload it again") from error
    if (found := hashlib.sha256(wasm).hexdigest()) != sha256:
        raise StoreError(f"the stored module {sha256} has the SHA-256 {found}; upload it again")
    return wasm


def _present(folders: _Folders, version: StoredVersion) -> StoredVersion | None:
    """The version, if its module is there."""
    try:
        found = os.stat(f"{version.sha256}.wasm", dir_fd=folders.modules, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return version if stat.S_ISREG(found.st_mode) else None


def _keep_module(folders: _Folders, sha256: str, wasm: bytes) -> None:
    with suppress(FileNotFoundError, StoreError):
        _read_module(folders, sha256)
        os.fsync(folders.modules)  # who wrote it may have died before doing so
        return
    write_file(folders.modules, f"{sha256}.wasm", wasm)


def _sweep(folders: _Folders) -> None:
    """Remove what no manifest names and what dead writers left; under the lock.

    A damaged manifest holds on to each digest in it. Failing takes nothing back of what was done.
    """
    try:
        for folder in (folders.modules, folders.plugins):
            for entry in names_in(folder):
                if entry.startswith(TEMPORARY) and age_secs(folder, entry) > STALE_TEMPORARY_SECS:
                    os.unlink(entry, dir_fd=folder)
        named: set[str] = set()
        for entry in filter(is_manifest, names_in(folders.plugins)):
            raw = read_file(folders.plugins, entry, MAX_MANIFEST_BYTES)
            named.update(digest.decode() for digest in _DIGESTS.findall(raw))
        for entry in names_in(folders.modules):
            digest, dot, suffix = entry.partition(".")
            if is_digest(digest) and dot + suffix == ".wasm" and digest not in named:
                os.unlink(entry, dir_fd=folders.modules)
    except (OSError, StoreError) as error:
        _log.warning("the plugin store keeps modules that nothing needs: %s", error)
