"""Which WASI imports a plugin may have: nothing, but for what `allowed_syscalls` lists."""

from collections.abc import Iterable, Sequence

from sgl_router.wasm.refusals import Reason

WASI_MODULE = "wasi_snapshot_preview1"

# Sockets are in no group, so that nothing grants them.
GROUPS: dict[str, tuple[str, ...]] = {
    "wasi:clocks": ("clock_time_get", "clock_res_get", "poll_oneoff", "sched_yield"),
    "wasi:random": ("random_get",),
    "wasi:stdio": (
        "fd_write",
        "fd_read",
        "fd_close",
        "fd_seek",
        "fd_fdstat_get",
        "fd_fdstat_set_flags",
        "fd_prestat_get",
        "fd_prestat_dir_name",
    ),
    "wasi:environ": (
        "args_get",
        "args_sizes_get",
        "environ_get",
        "environ_sizes_get",
        "proc_exit",
    ),
    "wasi:filesystem": (
        "fd_advise",
        "fd_allocate",
        "fd_datasync",
        "fd_fdstat_set_rights",
        "fd_filestat_get",
        "fd_filestat_set_size",
        "fd_filestat_set_times",
        "fd_pread",
        "fd_pwrite",
        "fd_readdir",
        "fd_renumber",
        "fd_sync",
        "fd_tell",
        "path_create_directory",
        "path_filestat_get",
        "path_filestat_set_times",
        "path_link",
        "path_open",
        "path_readlink",
        "path_remove_directory",
        "path_rename",
        "path_symlink",
        "path_unlink_file",
    ),
}

_GROUP_OF = {f"{WASI_MODULE}.{name}": group for group, names in GROUPS.items() for name in names}


def grant_problems(allowed_syscalls: object) -> list[Reason]:
    """What is wrong with the option `allowed_syscalls`."""
    if isinstance(allowed_syscalls, str) or not isinstance(allowed_syscalls, Sequence):
        text = f"allowed_syscalls is {type(allowed_syscalls).__name__}; expected a list of names"
        return [Reason("syscalls_not_a_list", text)]
    found = []
    for entry in allowed_syscalls:
        if isinstance(entry, str) and (entry in GROUPS or entry in _GROUP_OF):
            continue
        text = f"allowed_syscalls lists {entry!r:.80}; "
        if isinstance(entry, str) and "sock" in entry:
            found.append(Reason("syscall_is_network", text + "network access is never granted"))
        else:
            text += f"expected one of {', '.join(GROUPS)} "
            text += f"or a full name such as {WASI_MODULE}.random_get"
            found.append(Reason("syscall_unknown", text))
    return found


def granted(allowed_syscalls: Iterable[str]) -> frozenset[str]:
    """The full names of the imports that `allowed_syscalls` grants."""
    names: set[str] = set()
    for entry in allowed_syscalls:
        names.update(f"{WASI_MODULE}.{name}" for name in GROUPS.get(entry, ()))
        if entry in _GROUP_OF:
            names.add(entry)
    return frozenset(names)


def group_of(import_name: str) -> str | None:
    """The group that would grant an import (by full name), or None where nothing does."""
    return _GROUP_OF.get(import_name)


def is_network(import_name: str) -> bool:
    """Whether an import (by full name) is one of WASI's sockets."""
    return import_name.startswith(f"{WASI_MODULE}.sock_")


def has_files(grants: frozenset[str]) -> bool:
    """Whether the grants reach files, so that a real WASI context is needed."""
    return any(_GROUP_OF[name] == "wasi:filesystem" for name in grants)
