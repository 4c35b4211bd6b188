"""The folder of the cache: which are not used, what fails in them, and several who use one."""

import logging
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sgl_router.wasm.artifacts import ArtifactCache

KEY, OTHER = "a" * 64, "b" * 64
NATIVE = b"native code " * 1000


def found_in(cache: ArtifactCache, key: str) -> bytes | None:
    artifact = cache.get(key)
    return None if artifact is None else bytes(artifact)


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "compiled")


def file_of(cache: ArtifactCache, key: str) -> Path:
    (found,) = cache.folder.glob(f"{key}*")
    return found


def names(cache: ArtifactCache) -> set[str]:
    return {path.name for path in cache.folder.iterdir()}


# ---- folders that are not used


@contextmanager
def one_warning(caplog: pytest.LogCaptureFixture, *words: str) -> Iterator[None]:
    caplog.clear()
    yield
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    for word in words:
        assert word in record.getMessage()


def test_a_symbolic_link_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    real = ArtifactCache(tmp_path / "real")
    real.put(KEY, NATIVE)
    (tmp_path / "link").symlink_to(real.folder)
    cache = ArtifactCache(tmp_path / "link")
    with one_warning(caplog, str(cache.folder), "symbolic link"):
        assert cache.get(KEY) is None
        cache.put(KEY, b"other")
        cache.remove(KEY)
    assert found_in(real, KEY) == NATIVE


@pytest.mark.parametrize("mode", [0o770, 0o720, 0o702, 0o777, 0o1777])
def test_a_folder_that_others_may_write_to_is_not_used(
    cache: ArtifactCache, caplog: pytest.LogCaptureFixture, mode: int
) -> None:
    cache.put(KEY, NATIVE)
    before = names(cache)
    cache.folder.chmod(mode)
    with one_warning(caplog, str(cache.folder), f"{mode:04o}", "0700", "$XDG_CACHE_HOME"):
        assert cache.get(KEY) is None
        cache.put(OTHER, NATIVE)
        cache.remove(KEY)
    assert names(cache) == before
    cache.folder.chmod(0o700)
    assert found_in(cache, KEY) == NATIVE


def test_a_folder_of_somebody_else_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "compiled"
    if os.geteuid() == 0:
        folder.mkdir(0o700)
        os.chown(folder, 12345, 12345)
    else:
        folder = Path("/usr")
    cache = ArtifactCache(folder)
    with one_warning(caplog, str(folder), "belongs to user"):
        cache.put(KEY, NATIVE)
        assert cache.get(KEY) is None
    assert not list(folder.glob(f"{KEY}*"))


@pytest.mark.parametrize("folder", ["/dev/null/compiled", "/proc/sys", "/proc/1/nothing/here"])
def test_a_folder_that_cannot_be_written_to_is_a_line_in_the_log(
    caplog: pytest.LogCaptureFixture, folder: str
) -> None:
    cache = ArtifactCache(Path(folder))
    with one_warning(caplog, folder):
        cache.put(KEY, NATIVE)
        cache.put(KEY, NATIVE)
    assert cache.get(KEY) is None


@contextmanager
def full_disk(bytes_left: int) -> Iterator[None]:
    """No file can grow beyond this; Python ignores the signal, so that writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_left, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("bytes_left", [0, 31, 32, 100])
def test_a_full_disk_is_a_line_in_the_log_and_leaves_nothing(
    cache: ArtifactCache, caplog: pytest.LogCaptureFixture, bytes_left: int
) -> None:
    with one_warning(caplog, str(cache.folder), "File too large"), full_disk(bytes_left):
        cache.put(KEY, NATIVE)
        assert cache.get(KEY) is None
    assert names(cache) <= {"key"}
    cache.put(KEY, NATIVE)
    with full_disk(bytes_left):
        cache.put(KEY, b"other" * 1000)
        assert found_in(cache, KEY) == NATIVE
    assert len(names(cache)) == 2


def test_what_cannot_be_replaced_is_a_line_in_the_log_and_leaves_nothing(
    cache: ArtifactCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, NATIVE)
    file = file_of(cache, KEY)
    file.unlink()
    file.mkdir()
    before = names(cache)
    with one_warning(caplog, "Is a directory"):
        cache.put(KEY, NATIVE)
    assert names(cache) == before


def test_no_descriptor_is_left_open(cache: ArtifactCache) -> None:
    def use() -> None:
        cache.put(KEY, NATIVE)
        assert found_in(cache, KEY) == NATIVE
        file_of(cache, KEY).write_bytes(b"")
        assert cache.get(KEY) is None
        cache.folder.chmod(0o777)
        cache.get(KEY)
        cache.folder.chmod(0o700)

    use()
    before = len(list(Path("/proc/self/fd").iterdir()))
    use()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_too_many_open_files_lose_nothing(
    cache: ArtifactCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.put(KEY, NATIVE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    with one_warning(caplog, "Too many open files"):
        # The folder can still be opened, the file in it no more.
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free + 1, hard))
        try:
            assert cache.get(KEY) is None
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found_in(cache, KEY) == NATIVE


def test_what_is_larger_than_all_of_it_is_not_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ArtifactCache(tmp_path / "compiled", max_bytes=len(NATIVE) + 32)
    cache.put(KEY, NATIVE)
    with one_warning(caplog, f"{len(NATIVE) + 1:,}", f"{cache.max_bytes:,}"):
        cache.put(OTHER, NATIVE + b"x")
    assert cache.get(OTHER) is None
    assert found_in(cache, KEY) == NATIVE


# ---- several processes

_WRITER = """
import sys
from pathlib import Path
from sgl_router.wasm.artifacts import ArtifactCache

cache = ArtifactCache(Path(sys.argv[1]))
keys = [digit * 64 for digit in "0123"]
for turn in range(30):
    for key in keys:
        cache.put(key, key.encode() * 1000)
        found = cache.get(key)
        assert found in (None, key.encode() * 1000), found
        if turn % 10 == 9 and key == sys.argv[2] * 64:
            cache.remove(key)
for key in keys:
    cache.put(key, key.encode() * 1000)
"""


def test_processes_share_a_folder(cache: ArtifactCache) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(cache.folder), str(number)],
            stderr=subprocess.PIPE,
        )
        for number in range(4)
    ]
    for writer in writers:
        _, said = writer.communicate()
        assert writer.returncode == 0, said
        assert said == b""
    for digit in "0123":
        assert found_in(cache, digit * 64) == (digit * 64).encode() * 1000
    assert len(names(cache)) == 5
