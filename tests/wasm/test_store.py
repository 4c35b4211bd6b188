"""The store of uploaded plugins: what it keeps, and what it finds where a writer has failed."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from sgl_router.wasm.store import (
    PluginStore,
    StoredPlugin,
    StoredVersion,
    StoreError,
    default_store_folder,
)
from tests.wasm.steps import Crash, StandIn, Steps, stand_in_by

ONE, TWO, THREE = (b"\0asm" + bytes([n]) * 5_000 for n in (1, 2, 3))
HOURS_AGO = 1_000_000_000


def sha(wasm: bytes) -> str:
    return hashlib.sha256(wasm).hexdigest()


def version(wasm: bytes, at: int = 0, **settings: Any) -> StoredVersion:
    return StoredVersion(sha(wasm), settings, at)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return stand_in_by(monkeypatch)


@pytest.fixture
def store(tmp_path: Path) -> PluginStore:
    return PluginStore(tmp_path / "store", lock_wait_secs=0)


def modules(store: PluginStore) -> set[str]:
    return {path.name for path in (store.folder / "modules").iterdir()}


# ---- what it keeps


def test_versions_follow_one_another(store: PluginStore, tmp_path: Path) -> None:
    store.put("p", ONE, {"config": {"a": [1, None, "é"]}}, now_ms=1)
    store.put("p", TWO, {}, now_ms=2)
    assert store.put("p", TWO, {}, now_ms=3) == StoredPlugin(
        "p", version(TWO, 2), version(ONE, 1, config={"a": [1, None, "é"]}), None
    )
    after = store.put("p", THREE, {}, replaces=sha(b"file"), now_ms=4)
    assert after == StoredPlugin("p", version(THREE, 4), version(TWO, 2), sha(b"file"))
    assert PluginStore(store.folder).list() == ([after], [])
    assert PluginStore(store.folder).load("p") == (after, THREE)
    assert modules(store) == {f"{sha(TWO)}.wasm", f"{sha(THREE)}.wasm"}
    with pytest.raises(StoreError, match=sha(ONE)):
        store.read_module(sha(ONE))


@pytest.mark.parametrize(
    ("before", "after"), [({"a": 1}, {"a": True}), ({"a": 1}, {"a": 1.0}), ({}, {"a": None})]
)
def test_other_settings_are_another_version(
    store: PluginStore, before: dict[str, Any], after: dict[str, Any]
) -> None:
    store.put("p", ONE, before, now_ms=1)
    plugin = store.put("p", ONE, after, now_ms=2)
    assert (plugin.current.stored_at_ms, plugin.previous) == (2, version(ONE, 1, **before))


def test_the_same_upload_over_another_file(store: PluginStore) -> None:
    store.put("p", ONE, {"a": 1, "b": 2}, replaces=sha(b"file"), now_ms=1)
    plugin = store.put("p", ONE, {"b": 2, "a": 1}, replaces=sha(b"other"), now_ms=2)
    assert plugin == StoredPlugin("p", version(ONE, 1, a=1, b=2), None, sha(b"other"))
    assert store.list() == ([plugin], [])


def test_a_rollback(store: PluginStore) -> None:
    store.put("p", ONE, {}, replaces=sha(b"file"), now_ms=1)
    before = store.put("p", TWO, {}, replaces=sha(b"file"), now_ms=2)
    assert before.previous is not None
    after = store.set_current("p", before.previous, before.current, replaces=sha(b"other"))
    assert after == StoredPlugin("p", version(ONE, 1), version(TWO, 2), sha(b"other"))
    assert store.load("p") == (after, ONE)
    store.set_current("p", after.current, None, replaces=None)
    assert modules(store) == {f"{sha(ONE)}.wasm"}
    with pytest.raises(StoreError, match="upload it again"):
        store.set_current("p", before.current, after.current, replaces=None)
    with pytest.raises(StoreError, match="'q' is not in the plugin store"):
        store.set_current("q", after.current, None, replaces=None)
    assert store.load("p") == (StoredPlugin("p", version(ONE, 1), None, None), ONE)


def test_what_two_plugins_share_stays(store: PluginStore) -> None:
    store.put("p", ONE, {}, now_ms=1)
    store.put("q", ONE, {}, now_ms=1)
    assert store.remove("p")
    assert not store.remove("p")
    assert store.read_module(sha(ONE)) == ONE
    assert store.remove("q")
    assert (store.list(), modules(store)) == (([], []), set())


def test_to_read_makes_nothing(store: PluginStore, tmp_path: Path) -> None:
    assert store.list() == ([], [])
    assert store.load("p") is None
    assert not store.remove("p")
    with pytest.raises(StoreError, match="is not in the plugin store"):
        store.read_module(sha(ONE))
    assert list(tmp_path.iterdir()) == []


class Machine(RuleBasedStateMachine):
    """Two stores on one folder against a dictionary."""

    names = st.sampled_from("pqr")
    stores = st.integers(0, 1)
    replaced = st.sampled_from([None, sha(b"file")])

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        folder = Path(self._scratch.name) / "a" / "store"
        self.stores_there = [PluginStore(folder, lock_wait_secs=0) for _ in range(2)]
        self.model: dict[str, StoredPlugin] = {}
        self.now_ms = 0
        self.patch = pytest.MonkeyPatch()
        stand_in_by(self.patch)(Steps())

    def teardown(self) -> None:
        self.patch.undo()
        self._scratch.cleanup()

    @rule(
        at=stores,
        name=names,
        wasm=st.sampled_from([ONE, TWO, THREE]),
        n=st.integers(0, 1),
        replaces=replaced,
    )
    def put(self, at: int, name: str, wasm: bytes, n: int, replaces: str | None) -> None:
        self.now_ms += 1
        new, before = version(wasm, self.now_ms, n=n), self.model.get(name)
        if before is None:
            after = StoredPlugin(name, new, None, replaces)
        elif (before.current.sha256, before.current.settings) == (new.sha256, new.settings):
            after = StoredPlugin(name, before.current, before.previous, replaces)
        else:
            after = StoredPlugin(name, new, before.current, replaces)
        self.model[name] = after
        store = self.stores_there[at]
        assert store.put(name, wasm, {"n": n}, replaces=replaces, now_ms=self.now_ms) == after

    @rule(at=stores, name=names)
    def roll_back(self, at: int, name: str) -> None:
        plugin = self.model.get(name)
        if plugin is not None and plugin.previous is not None:
            after = StoredPlugin(name, plugin.previous, plugin.current, plugin.replaces)
            assert (
                self.stores_there[at].set_current(
                    name, after.current, after.previous, replaces=after.replaces
                )
                == after
            )
            self.model[name] = after

    @rule(at=stores, name=names)
    def remove(self, at: int, name: str) -> None:
        assert self.stores_there[at].remove(name) is (self.model.pop(name, None) is not None)

    @invariant()
    def both_hold_what_the_model_does(self) -> None:
        versions = [v for p in self.model.values() for v in (p.current, p.previous) if v]
        for store in self.stores_there:
            assert store.list() == ([self.model[name] for name in sorted(self.model)], [])
            for found in versions:
                assert sha(store.read_module(found.sha256)) == found.sha256
        if store.folder.exists():
            assert modules(store) == {f"{found.sha256}.wasm" for found in versions}
            assert len(list((store.folder / "plugins").iterdir())) == len(self.model)


Machine.TestCase.settings = hypothesis_settings(max_examples=40, stateful_step_count=25)
TestMachine = Machine.TestCase


# ---- what it finds when it fails

OPERATIONS: dict[str, Callable[[PluginStore], object]] = {
    "first": lambda store: store.put("new", ONE, {}, now_ms=9),
    "next": lambda store: store.put("p", THREE, {"n": 3}, now_ms=9),
    "other settings": lambda store: store.put("p", TWO, {"n": 3}, now_ms=9),
    "unchanged": lambda store: store.put("p", TWO, {"n": 2}, now_ms=9),
    "other file": lambda store: store.put("p", TWO, {"n": 2}, replaces=sha(b"x"), now_ms=9),
    "rollback": lambda store: store.set_current(
        "p", version(ONE, 1), version(TWO, 2, n=2), replaces=None
    ),
    "remove": lambda store: store.remove("p"),
}


def whole(store: PluginStore) -> list[StoredPlugin]:
    """The plugins; each has its modules, and nothing is complained of."""
    plugins, complaints = store.list()
    assert not complaints
    for plugin in plugins:
        for found in filter(None, (plugin.current, plugin.previous)):
            store.read_module(found.sha256)
    return plugins


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    store = PluginStore(tmp_path / "prepared")
    with pytest.MonkeyPatch.context() as patch:
        stand_in_by(patch)(Steps())  # without waiting for the disk
        store.put("p", ONE, {}, now_ms=1)
        store.put("p", TWO, {"n": 2}, now_ms=2)
        store.put("q", THREE, {}, now_ms=3)
    return store.folder


def each_step(
    operation: Callable[[PluginStore], object],
    prepared: Path,
    stand_in: StandIn,
    steps_for: Callable[[int], Steps],
) -> Iterator[tuple[PluginStore, BaseException | None]]:
    """The store after the operation has failed at its first step, its second, … and not at all."""
    for at in range(1000):
        folder = prepared.parent / f"at-{at}"
        shutil.copytree(prepared, folder)
        steps = steps_for(at)
        stand_in(steps)
        failure: BaseException | None = None
        try:
            operation(PluginStore(folder, lock_wait_secs=0))
        except (Crash, StoreError) as error:
            failure = error
        stand_in(Steps())
        yield PluginStore(folder, lock_wait_secs=0), failure
        if steps._steps <= at:
            assert failure is None
            assert at > 5, "it has steps at which it can fail"
            return


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_crash_at_any_step_leaves_the_old_or_the_new(
    operation: str, prepared: Path, stand_in: StandIn
) -> None:
    def dead_from(at: int) -> Steps:
        def hook(number: int, name: str) -> None:
            if number >= at:
                raise Crash

        return Steps(hook)

    old, found = whole(PluginStore(prepared)), []
    for store, failure in each_step(OPERATIONS[operation], prepared, stand_in, dead_from):
        found.append(whole(store))
        if failure is not None:
            for path in store.folder.rglob(".tmp-*"):
                os.utime(path, (HOURS_AGO, HOURS_AGO))
            OPERATIONS[operation](store)
        versions = [v for p in whole(store) for v in (p.current, p.previous) if v]
        assert modules(store) == {f"{v.sha256}.wasm" for v in versions}, "nothing is left over"
        assert not list(store.folder.rglob(".tmp-*"))
    new = found[-1]
    turned = found.index(new)
    assert found == [old] * turned + [new] * (len(found) - turned), "it turns once"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_error_at_any_step_leaves_the_old_or_the_new(
    operation: str, code: int, prepared: Path, stand_in: StandIn
) -> None:
    def fails_at(at: int) -> Steps:
        def hook(number: int, name: str) -> None:
            if number == at:
                raise OSError(code, os.strerror(code))

        return Steps(hook)

    old, found = whole(PluginStore(prepared)), []
    for store, failure in each_step(OPERATIONS[operation], prepared, stand_in, fails_at):
        found.append((whole(store), failure))
        assert not list(store.folder.rglob(".tmp-*"))
        assert failure is None or os.strerror(code) in str(failure)
    new = found[-1][0]
    assert all(plugins in (old, new) for plugins, _ in found)
    assert all(plugins == new for plugins, failure in found if failure is None)
    assert sum(plugins == new != old for plugins, failure in found if failure is not None) <= 1


def test_a_write_that_is_cut_short_goes_on(store: PluginStore, stand_in: StandIn) -> None:
    steps = Steps()
    steps.write = lambda fd, data: os.write(fd, data[:1000])  # type: ignore[attr-defined]
    stand_in(steps)
    store.put("p", ONE * 3, {}, now_ms=9)
    assert store.read_module(sha(ONE * 3)) == ONE * 3


def test_a_module_is_on_the_disk_before_a_manifest_names_it(
    store: PluginStore, stand_in: StandIn
) -> None:
    store.put("p", ONE, {}, now_ms=1)
    steps = Steps()
    stand_in(steps)
    store.put("p", TWO, {}, now_ms=2)
    assert steps.trace == [
        *("sync store", "sync .tmp", "rename .wasm", "sync modules"),
        *("sync .tmp", "rename .json", "sync plugins"),
    ]


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert default_store_folder() == Path("/home/somebody/.local/state/sgl-router/plugins")
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert default_store_folder() == Path("/home/somebody/.local/state/sgl-router/plugins")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert default_store_folder() == tmp_path / "sgl-router" / "plugins"
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/sgl-router:/var/lib/other")
    assert default_store_folder() == Path("/var/lib/sgl-router/plugins")
    for name in ("STATE_DIRECTORY", "XDG_STATE_HOME"):
        monkeypatch.delenv(name)

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    assert default_store_folder() is None
