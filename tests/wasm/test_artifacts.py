"""The cache of compiled plugins: what it believes, and that it is never a failure."""

import os
import socket
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.wasm.artifacts import ArtifactCache, default_cache_folder

KEY, OTHER, THIRD = "a" * 64, "b" * 64, "c" * 64
NATIVE = b"native code " * 1000


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "compiled")


def file_of(cache: ArtifactCache, key: str) -> Path:
    (found,) = cache.folder.glob(f"{key}*")
    return found


def mode_of(path: Path) -> int:
    return path.stat().st_mode & 0o777


def found(cache: ArtifactCache, key: str) -> bytes | None:
    artifact = cache.get(key)
    return None if artifact is None else bytes(artifact)


def names(cache: ArtifactCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


# ---- what is kept


@given(st.lists(st.tuples(st.sampled_from([KEY, OTHER, THIRD]), st.binary(max_size=300))))
def test_what_was_put_last_is_what_one_gets(puts: list[tuple[str, bytes]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = ArtifactCache(Path(folder, "compiled"))
        for key, artifact in puts:
            cache.put(key, artifact)
        expected = dict(puts)
        for key in (KEY, OTHER, THIRD):
            assert found(cache, key) == expected.get(key)
            assert found(ArtifactCache(cache.folder), key) == expected.get(key)


def test_only_its_user_can_read_or_write_anything(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "home" / "cache" / "compiled")
    cache.put(KEY, NATIVE)
    assert found(cache, KEY) == NATIVE
    for folder in (cache.folder, cache.folder.parent, cache.folder.parent.parent):
        assert mode_of(folder) == 0o700
    assert {mode_of(file) for file in cache.folder.iterdir()} == {0o600}


def test_asking_makes_nothing(cache: ArtifactCache, caplog: pytest.LogCaptureFixture) -> None:
    assert found(cache, KEY) is None
    cache.remove(KEY)
    assert not cache.folder.exists()
    assert caplog.records == []


def test_what_is_removed_is_gone(cache: ArtifactCache) -> None:
    cache.put(KEY, NATIVE)
    cache.put(OTHER, NATIVE)
    cache.remove(KEY)
    cache.remove(KEY)
    assert found(cache, KEY) is None
    assert found(cache, OTHER) == NATIVE


@pytest.mark.parametrize("key", ["", "a" * 63, "A" * 64, "../" + "a" * 61, "a" * 64 + "\n"])
def test_a_key_is_never_a_path(cache: ArtifactCache, key: str) -> None:
    for call in (cache.get, cache.remove, lambda key: cache.put(key, NATIVE)):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            call(key)


# ---- what is not believed


@given(st.data())
def test_a_file_changed_anywhere_is_absent_and_removed(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = ArtifactCache(Path(folder, "compiled"))
        cache.put(KEY, NATIVE[:200])
        file = file_of(cache, KEY)
        whole = file.read_bytes()
        at = data.draw(st.integers(0, len(whole) - 1))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "append"]))
        file.write_bytes(
            {
                "flip": whole[:at]
                + bytes([whole[at] ^ data.draw(st.integers(1, 255))])
                + whole[at + 1 :],
                "cut": whole[:at],
                "insert": whole[:at] + b"\0" + whole[at:],
                "append": whole + data.draw(st.binary(min_size=1, max_size=40)),
            }[kind]
        )
        if file.read_bytes() == whole:  # a zero inserted next to a zero
            assert kind == "insert"
            return
        assert found(cache, KEY) is None
        assert not file.exists()
        cache.put(KEY, NATIVE)
        assert found(cache, KEY) == NATIVE


def test_a_hit_takes_the_room_of_its_artifact(cache: ArtifactCache) -> None:
    artifact = bytes(3_000_000)
    cache.put(KEY, artifact)
    tracemalloc.start()
    try:
        assert found(cache, KEY) == artifact
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * len(artifact)
    assert cache.max_bytes > 100 * len(artifact)


def test_one_artifact_cannot_be_passed_off_as_another(cache: ArtifactCache) -> None:
    cache.put(KEY, NATIVE)
    cache.put(OTHER, b"other")
    file_of(cache, KEY).replace(file_of(cache, OTHER))
    assert found(cache, OTHER) is None


def test_what_was_kept_under_another_secret_is_absent(cache: ArtifactCache, tmp_path: Path) -> None:
    elsewhere = ArtifactCache(tmp_path / "elsewhere")
    for each in (cache, elsewhere):
        each.put(KEY, NATIVE)
    file_of(cache, KEY).write_bytes(file_of(elsewhere, KEY).read_bytes())
    assert found(cache, KEY) is None
    assert found(elsewhere, KEY) == NATIVE


def _short(secret: Path) -> None:
    secret.write_bytes(secret.read_bytes()[:31])


def _readable(secret: Path) -> None:
    secret.chmod(0o640)


def _symlink(secret: Path) -> None:
    secret.rename(secret.with_name("moved"))
    secret.symlink_to("moved")


@pytest.mark.parametrize("damage", [Path.unlink, _short, _readable, _symlink])
def test_a_secret_that_may_be_known_to_others_is_replaced(
    cache: ArtifactCache, damage: Callable[[Path], None]
) -> None:
    cache.put(KEY, NATIVE)
    before = (cache.folder / "key").read_bytes()
    damage(cache.folder / "key")
    assert found(cache, KEY) is None
    cache.put(KEY, NATIVE)
    assert found(cache, KEY) == NATIVE
    secret = cache.folder / "key"
    assert not secret.is_symlink()
    assert mode_of(secret) == 0o600
    assert len(secret.read_bytes()) == 32
    assert secret.read_bytes() != before


def _fifo(file: Path) -> None:
    os.mkfifo(file)


def _socket(file: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        here = Path.cwd()
        os.chdir(file.parent)  # a socket's path has 108 bytes at most
        try:
            listening.bind(file.name)
        finally:
            os.chdir(here)


def _link_to_the_real_one(file: Path) -> None:
    file.symlink_to("aside")


def _writable(file: Path) -> None:
    file.write_bytes((file.parent / "aside").read_bytes())
    file.chmod(0o660)


def _sparse(file: Path) -> None:
    file.touch(0o600)
    os.truncate(file, 2**40)


@pytest.mark.parametrize("put", [_fifo, _socket, _link_to_the_real_one, _writable, _sparse])
def test_what_is_not_a_file_of_ours_is_absent_and_removed(
    cache: ArtifactCache, put: Callable[[Path], None]
) -> None:
    cache.put(KEY, NATIVE)
    file = file_of(cache, KEY)
    file.rename(cache.folder / "aside")
    put(file)
    assert found(cache, KEY) is None
    assert not os.path.lexists(file)


# ---- room


def test_the_least_recently_used_goes(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path / "compiled", max_bytes=2 * (len(NATIVE) + 32))
    for age, key in ((2000, KEY), (1000, OTHER)):
        cache.put(key, NATIVE)
        os.utime(file_of(cache, key), (time.time() - age,) * 2)
    assert found(cache, KEY) == NATIVE
    cache.put(THIRD, NATIVE)
    assert found(cache, OTHER) is None
    assert found(cache, KEY) == NATIVE
    assert found(cache, THIRD) == NATIVE


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.integers(0, 400)), max_size=20))
def test_the_limit_holds_after_each_put(puts: list[tuple[str, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        cache = ArtifactCache(Path(folder, "compiled"), max_bytes=432)
        for letter, size in puts:
            cache.put(letter * 64, bytes(size))
            kept = cache.folder.glob("*.artifact")
            assert sum(path.stat().st_size for path in kept) <= cache.max_bytes
            assert found(cache, letter * 64) == bytes(size)


def test_what_a_writer_left_unfinished_is_removed_later(cache: ArtifactCache) -> None:
    cache.put(KEY, NATIVE)
    dead, writing = cache.folder / "tmp-dead", cache.folder / "tmp-writing"
    for path in (dead, writing):
        path.write_bytes(NATIVE)
    os.utime(dead, (time.time() - 7200,) * 2)
    cache.put(OTHER, NATIVE)
    assert not dead.exists()
    assert writing.exists()


# ---- where it is


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"HOME": "/home/a"}, "/home/a/.cache/sgl-router/compiled"),
        ({"HOME": "/home/a", "XDG_CACHE_HOME": "/x"}, "/x/sgl-router/compiled"),
        ({"XDG_CACHE_HOME": "/x"}, "/x/sgl-router/compiled"),
        (
            {"HOME": "/home/a", "XDG_CACHE_HOME": "not/absolute"},
            "/home/a/.cache/sgl-router/compiled",
        ),
        ({"HOME": "/h", "XDG_CACHE_HOME": "/x", "CACHE_DIRECTORY": "/s"}, "/s/compiled"),
        ({"HOME": "/h", "CACHE_DIRECTORY": "/s:/t"}, "/s/compiled"),
        ({"HOME": "/h", "CACHE_DIRECTORY": "s"}, "/h/.cache/sgl-router/compiled"),
        ({"HOME": "not/absolute"}, None),
    ],
)
def test_the_folder_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str | None
) -> None:
    for name in ("HOME", "XDG_CACHE_HOME", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert default_cache_folder() == (None if folder is None else Path(folder))


def test_without_a_home_there_is_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("XDG_CACHE_HOME", "CACHE_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    assert default_cache_folder() is None
