"""Rust: a core module, built with Cargo."""

import os
import shutil
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import answer_of

TARGET = "wasm32-unknown-unknown"

_DEBIAN = Path("/usr")
_DEBIAN_CRATES = Path("/usr/share/cargo/registry")


@dataclass(frozen=True, slots=True)
class _Toolchain:
    cargo: str
    rustc: str
    sysroot: Path

    def source_options(self) -> list[str]:
        """A distribution's compiler can be too old for the newest crates; those it ships fit."""
        if self.sysroot != _DEBIAN or not any(_DEBIAN_CRATES.glob("serde_json-*")):
            return []
        return [
            "--offline",
            "--config",
            'source.crates-io.replace-with="debian"',
            "--config",
            f'source.debian.directory="{_DEBIAN_CRATES}"',
        ]


def _toolchains() -> Iterator[_Toolchain]:
    """Those on this machine that have the target: the author's own, then the distribution's."""
    usual = os.environ.get("CARGO", "cargo"), os.environ.get("RUSTC", "rustc")
    for cargo, rustc in (usual, ("/usr/bin/cargo", "/usr/bin/rustc")):
        found = shutil.which(cargo), shutil.which(rustc)
        if found[0] is None or found[1] is None:
            continue
        said = answer_of([found[1], "--print", "sysroot"])
        if said is None:
            continue
        sysroot = Path(said.strip())
        if any(sysroot.glob(f"lib/rustlib/{TARGET}/lib/*")):
            yield _Toolchain(found[0], found[1], sysroot)


def _find() -> Sequence[str] | None:
    toolchain = next(_toolchains(), None)
    return None if toolchain is None else [toolchain.cargo]


_TOOL = Tool(
    name=f"Rust with the target {TARGET}",
    install=(
        f"rustup target add {TARGET} (rustup is at https://rustup.rs), or on Debian and Ubuntu "
        "apt install rustc cargo libstd-rust-dev-wasm32 librust-serde-dev librust-serde-derive-dev "
        "librust-serde-json-dev lld"
    ),
    find=_find,
)


def _build(folder: Path, _name: str, run: Run) -> Path:
    toolchain = next(_toolchains(), None)
    assert toolchain is not None, "nothing is built without its tools"
    # Named, so that no setting of Cargo's puts it elsewhere.
    target = os.environ.get("CARGO_TARGET_DIR") or "target"
    # Cargo reads .cargo/config.toml of the folder that it is started in.
    command = [toolchain.cargo, "build", "--release", "--target", TARGET, "--target-dir", target]
    run(command + toolchain.source_options(), folder, {"RUSTC": toolchain.rustc})
    return folder / target / TARGET / "release" / f"{_library(folder)}.wasm"


def _library(folder: Path) -> str:
    """The name of the library of a crate, as Cargo makes it of the package's name."""
    cargo = tomllib.loads((folder / "Cargo.toml").read_text(encoding="utf-8"))
    name: str = cargo.get("lib", {}).get("name") or cargo["package"]["name"].replace("-", "_")
    return name


RUST = Language(name="rust", policy_file="src/lib.rs", tools=(_TOOL,), build=_build)
