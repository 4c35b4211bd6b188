"""What the store of uploaded plugins refuses, and what it makes of damage and of other writers."""

import fcntl
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from sgl_router.wasm.module import MAX_MODULE_BYTES
from sgl_router.wasm.store import PluginStore, StoreError
from sgl_router.wasm.stored import MAX_SETTINGS_BYTES
from tests.wasm.steps import StandIn, Steps, stand_in_by
from tests.wasm.test_store import HOURS_AGO, ONE, THREE, TWO, modules, sha, version


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return stand_in_by(monkeypatch)


@pytest.fixture
def store(tmp_path: Path, stand_in: StandIn) -> PluginStore:
    """It holds the plugin p, of which THREE is current and TWO the one before, and q."""
    stand_in(Steps())  # does not wait for the disk
    store = PluginStore(tmp_path / "store", lock_wait_secs=0)
    for at, wasm in enumerate((ONE, TWO, THREE)):
        store.put("p", wasm, {}, now_ms=at)
    store.put("q", ONE, {}, now_ms=9)
    return store


def manifest(store: PluginStore, name: str = "p") -> Path:
    return store.folder / "plugins" / f"{name}.json"


def module(store: PluginStore, wasm: bytes) -> Path:
    return store.folder / "modules" / f"{sha(wasm)}.wasm"


def complaint(store: PluginStore) -> str:
    """The only one; q is there whatever has happened to p."""
    plugins, complaints = store.list()
    assert "q" in [plugin.name for plugin in plugins]
    (found,) = complaints
    assert str(manifest(store)) in found
    assert "upload the plugin again" in found
    return found


def good(**changes: object) -> bytes:
    current = {"sha256": sha(THREE), "settings": {}, "stored_at_ms": 1}
    document = {"format": 1, "name": "p", "current": current, "previous": None, "replaces": None}
    return orjson.dumps(document | changes)


def current(**changes: object) -> bytes:
    return good(current={"sha256": sha(THREE), "settings": {}, "stored_at_ms": 1} | changes)


# ---- damage


@pytest.mark.parametrize(
    "content",
    [
        b"",
        good()[:-1],
        b"\0" * 200,
        b"[]",
        b"\xff",
        b"[" * 100_000,
        good() + b" " * 2_000_000,
        good(format=2),
        good(format=None),
        good(name="q"),
        good(current=None),
        good(current=[]),
        good(previous="no"),
        good(replaces="../../x"),
        current(sha256="../../etc/passwd"),
        current(sha256=sha(THREE).upper()),
        current(sha256=None),
        current(settings=[]),
        current(stored_at_ms="1"),
        current(stored_at_ms=True),
        current(sha256=sha(b"gone")),
    ],
)
def test_a_damaged_manifest_is_told_of_and_can_be_replaced(
    store: PluginStore, content: bytes
) -> None:
    assert len(store.list()[0]) == 2, "it is good before"
    manifest(store).write_bytes(content)
    assert [plugin.name for plugin in store.list()[0]] == ["q"]
    found = complaint(store)
    assert len(found) < 1000
    with pytest.raises(StoreError) as caught:
        store.load("p")
    assert str(caught.value) == found
    plugin = store.put("p", TWO, {}, now_ms=9)
    assert plugin.current == version(TWO, 9)
    assert store.list()[1] == []
    manifest(store).write_bytes(content)
    assert store.remove("p")
    assert store.list()[1] == []


def test_damage_to_one_manifest_costs_no_module(store: PluginStore) -> None:
    whole = manifest(store).read_bytes()
    manifest(store).write_bytes(whole.replace(b"}", b""))
    store.put("q", THREE, {}, now_ms=10)
    manifest(store).write_bytes(whole)
    assert store.list()[1] == []
    assert store.load("p") is not None


def test_a_file_that_is_no_manifest_is_left_alone(store: PluginStore) -> None:
    kept = [store.folder / "plugins" / "note.txt", store.folder / "modules" / "note.wasm"]
    for path in kept:
        path.write_text("mine")
    (store.folder / "plugins" / "a b.json").write_bytes(good(name="a b"))
    _, (found,) = store.list()
    assert "a b.json" in found
    store.put("p", ONE, {}, now_ms=10)
    assert all(path.exists() for path in kept)


def test_a_module_that_has_changed_is_never_given(store: PluginStore) -> None:
    for content in (THREE[:-1], THREE + b"\0", b"", TWO, THREE + b"\0" * MAX_MODULE_BYTES):
        module(store, THREE).write_bytes(content)
        for read in (lambda: store.read_module(sha(THREE)), lambda: store.load("p")):
            with pytest.raises(StoreError, match=sha(THREE)):
                read()
        store.put("p", THREE, {}, now_ms=9)
        assert store.read_module(sha(THREE)) == THREE, "the same upload mends it"


def test_without_the_module_before_it_there_is_nothing_to_return_to(store: PluginStore) -> None:
    module(store, TWO).unlink()
    (plugin, _), _ = store.list()
    assert (plugin.current, plugin.previous) == (version(THREE, 2), None)
    assert "previous version" in complaint(store)
    module(store, THREE).unlink()
    assert f"module {sha(THREE)} is missing" in complaint(store)
    assert store.put("p", TWO, {}, now_ms=9).previous is None


def test_all_modules_are_lost(store: PluginStore) -> None:
    for path in (store.folder / "modules").iterdir():
        path.unlink()
    (store.folder / "modules").rmdir()
    plugins, complaints = store.list()
    assert (plugins, len(complaints)) == ([], 2)
    store.put("p", THREE, {}, now_ms=9)
    assert store.read_module(sha(THREE)) == THREE


def test_only_old_temporary_files_are_removed(store: PluginStore) -> None:
    for folder in ("modules", "plugins"):
        for name in (".tmp-old", ".tmp-of-somebody"):
            (store.folder / folder / name).touch()
        os.utime(store.folder / folder / ".tmp-old", (HOURS_AGO, HOURS_AGO))
    store.remove("q")
    for folder in ("modules", "plugins"):
        assert [path.name for path in (store.folder / folder).glob(".tmp-*")] == [
            ".tmp-of-somebody"
        ]


# ---- links and what is no file


def _link(path: Path) -> None:
    outside = path.parent.parent.parent / "outside"
    outside.write_bytes(good() if path.suffix == ".json" else THREE)
    path.symlink_to(outside)


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # a socket's path may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind("s")
        Path("s").rename(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [_link, os.mkfifo, _socket])
def test_only_regular_files_are_read(store: PluginStore, make: Callable[[Path], None]) -> None:
    module(store, THREE).unlink()
    make(module(store, THREE))
    with pytest.raises(StoreError, match="not a regular file"):
        store.read_module(sha(THREE))
    assert "is missing" in complaint(store)
    store.put("p", THREE, {}, now_ms=9)
    assert store.read_module(sha(THREE)) == THREE
    manifest(store).unlink()
    make(manifest(store))
    assert "not a regular file" in complaint(store)
    store.put("p", TWO, {}, now_ms=9)
    assert stat.S_ISREG(manifest(store).lstat().st_mode)
    assert stat.S_ISREG(module(store, TWO).lstat().st_mode)


def test_nothing_is_written_through_a_link(store: PluginStore, tmp_path: Path) -> None:
    manifest(store).unlink()
    _link(manifest(store))
    store.put("p", TWO, {}, now_ms=9)
    assert (tmp_path / "outside").read_bytes() == good()
    (store.folder / "lock").unlink()
    (store.folder / "lock").symlink_to(tmp_path / "made")
    with pytest.raises(StoreError, match="symbolic links"):
        store.put("p", ONE, {}, now_ms=10)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["modules", "plugins"])
def test_a_folder_behind_a_link(store: PluginStore, tmp_path: Path, name: str) -> None:
    (store.folder / name).rename(tmp_path / "elsewhere")
    (store.folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=name):
        store.list()
    with pytest.raises(StoreError, match=name):
        store.put("p", ONE, {}, now_ms=9)
    (tmp_path / "link").symlink_to(store.folder)
    (store.folder / name).unlink()
    (tmp_path / "elsewhere").rename(store.folder / name)
    assert len(PluginStore(tmp_path / "link").list()[0]) == 2, "the store itself may be"


# ---- who else could write


def test_it_is_for_its_owner_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        PluginStore(tmp_path / "a" / "store").put("p", ONE, {}, now_ms=1)
    finally:
        os.umask(before)
    for path in (tmp_path / "a", *(tmp_path / "a").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.parametrize("name", ["", "modules", "plugins"])
def test_a_folder_that_others_may_write_to(store: PluginStore, name: str) -> None:
    for mode in (0o720, 0o702, 0o1777):
        (store.folder / name).chmod(mode)
        for use in (
            store.list,
            lambda: store.load("p"),
            lambda: store.read_module(sha(THREE)),
            lambda: store.put("p", ONE, {}, now_ms=9),
            lambda: store.remove("p"),
        ):
            with pytest.raises(StoreError, match=rf"mode {mode:04o}.*chmod 700"):
                use()
    (store.folder / name).chmod(0o755)
    assert len(store.list()[0]) == 2


def test_a_folder_of_somebody_else(store: PluginStore, stand_in: StandIn) -> None:
    steps = Steps()
    steps.geteuid = lambda: os.geteuid() + 1  # type: ignore[attr-defined]
    stand_in(steps)
    for use in (store.list, lambda: store.put("p", ONE, {}, now_ms=9)):
        with pytest.raises(StoreError, match=f"belongs to user {os.geteuid()}"):
            use()
    assert modules(store) == {f"{sha(wasm)}.wasm" for wasm in (ONE, TWO, THREE)}


# ---- what is not taken


@pytest.mark.parametrize("name", ["", "../p", "a/b", "p.json", "x" * 65, "none", "p\n", "ä", "."])
def test_names(store: PluginStore, name: str) -> None:
    for use in (
        lambda: store.put(name, ONE, {}, now_ms=9),
        lambda: store.remove(name),
        lambda: store.load(name),
        lambda: store.set_current(name, version(THREE, 2), None, replaces=None),
    ):
        with pytest.raises(StoreError, match="name"):
            use()


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_digests(store: PluginStore, digest: str) -> None:
    with pytest.raises(StoreError, match="64"):
        store.read_module(digest)


def test_modules_and_settings_that_are_not_kept(store: PluginStore) -> None:
    nested: dict[str, object] = {}
    for _ in range(252):
        nested = {"a": nested}
    before = store.list()
    for wasm, settings, expected in (
        (b"", {}, "0 bytes"),
        (bytes(MAX_MODULE_BYTES + 1), {}, f"{MAX_MODULE_BYTES:,}"),
        (ONE, {"a": {1, 2}}, "not JSON"),
        (ONE, {"a": "\ud800"}, "not JSON"),
        (ONE, {"a": 2**70}, "not JSON"),
        (ONE, nested, "not JSON"),
        (ONE, {"a": "x" * MAX_SETTINGS_BYTES}, f"{MAX_SETTINGS_BYTES:,}"),
    ):
        with pytest.raises(StoreError, match=expected):
            store.put("p", wasm, settings, now_ms=9)
    assert store.list() == before
    largest = {"a": "x" * (MAX_SETTINGS_BYTES - 8)}
    store.put("p", bytes(MAX_MODULE_BYTES), largest, now_ms=9)
    store.put("p", ONE, largest, now_ms=9)
    assert store.list()[1] == []


# ---- other writers, and a disk without room


def test_a_writer_waits_for_the_lock_and_a_reader_does_not(store: PluginStore) -> None:
    before = store.list()
    with (store.folder / "lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="lock has been held"):
            store.put("p", ONE, {}, now_ms=9)
        with pytest.raises(StoreError, match="lock has been held"):
            store.remove("p")
        assert store.list() == before
    store.put("p", ONE, {}, now_ms=9)


@pytest.mark.parametrize("at", range(14))
def test_a_plugin_that_is_replaced_while_it_is_read(
    store: PluginStore, stand_in: StandIn, at: int
) -> None:
    """Twice, so that none of the modules that the reader has heard of is there any more."""

    def replaced_at(at: int) -> Steps:
        left = [at]

        def hook(number: int, name: str) -> None:
            if left == [number]:
                left.clear()
                for n in range(2):
                    PluginStore(store.folder).put("p", os.urandom(100), {"n": n}, now_ms=n)

        return Steps(hook)

    stand_in(replaced_at(at))
    plugins, complaints = store.list()
    assert (len(plugins), complaints) == (2, [])
    stand_in(replaced_at(at))
    loaded = store.load("p")
    assert loaded is not None
    assert sha(loaded[1]) == loaded[0].current.sha256


_WITHOUT_ROOM = """
import resource, sys
from pathlib import Path
from sgl_router.wasm.store import PluginStore, StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    PluginStore(Path(sys.argv[1])).put("p", bytes(int(sys.argv[3])), {"a": "x" * 3_000}, now_ms=9)
except StoreError as error:
    print(error)
"""


@pytest.mark.parametrize(("limit", "size"), [(0, 50_000), (20_000, 50_000), (1_000, 500)])
def test_no_room(store: PluginStore, limit: int, size: int) -> None:
    """For the module, for half of it, for the manifest."""
    before, modules_before = store.list(), modules(store)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_ROOM, str(store.folder), str(limit), str(size)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large" in done.stdout
    assert (store.list(), modules(store)) == (before, modules_before)
    assert not list(store.folder.rglob(".tmp-*"))
