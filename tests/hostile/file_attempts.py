"""A guest with files beside those of others, and what it may try on them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.wasm.file_calls import (
    CREATE,
    DATA_AT,
    DIRECTORY,
    OUT,
    READ,
    TOP,
    TRUNCATE,
    WRITE,
    Guest,
    guest_in,
)

SECRET = "nobody's business"

# What a guest may try on a path, by its name; each is refused outside, whatever is there.
ATTEMPTS: dict[str, Callable[[Guest, str], int]] = {
    "read": lambda g, path: g.open(path, rights=READ),
    "write": lambda g, path: g.open(path, rights=WRITE),
    "create": lambda g, path: g.open(path, CREATE),
    "truncate": lambda g, path: g.open(path, TRUNCATE, WRITE),
    "list": lambda g, path: g.open(path, DIRECTORY, READ),
    "mkdir": lambda g, path: g.call("path_create_directory", TOP, path),
    "unlink": lambda g, path: g.call("path_unlink_file", TOP, path),
    "rmdir": lambda g, path: g.call("path_remove_directory", TOP, path),
    "move-out": lambda g, path: g.call("path_rename", TOP, "mine", TOP, path),
    "move-in": lambda g, path: g.call("path_rename", TOP, path, TOP, "theirs"),
    "link-out": lambda g, path: g.call("path_link", TOP, 0, "mine", TOP, path),
    "link-in": lambda g, path: g.call("path_link", TOP, 0, path, TOP, "theirs"),
    "symlink": lambda g, path: g.call("path_symlink", "mine", TOP, path),
    "readlink": lambda g, path: g.call("path_readlink", TOP, path, DATA_AT, 100, OUT),
    "status": lambda g, path: g.call("path_filestat_get", TOP, 1, path, OUT),
    "times": lambda g, path: g.call("path_filestat_set_times", TOP, 1, path, 0, 0, 5),
}


def tree(folder: Path, without: Path) -> dict[str, tuple[int, ...]]:
    """All that is in a folder but in another, with what would show that it was touched."""
    found: dict[str, tuple[int, ...]] = {}
    for path in folder.rglob("*"):
        if without not in (path, *path.parents):
            status = path.lstat()
            found[str(path)] = (status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink)
    return found


@contextmanager
def hostile_in(parent: Path) -> Iterator[Guest]:
    """A guest beside whose directory there are others' files, and some of its own in it."""
    outer = parent / "outer"
    (outer / "theirs" / "sub").mkdir(parents=True)
    (outer / "secret").write_text(SECRET)
    (outer / "theirs" / "secret").write_text(SECRET)
    with guest_in(outer) as made:
        (made.folder / "mine").write_text("mine")
        (made.folder / "sub").mkdir()
        yield made
