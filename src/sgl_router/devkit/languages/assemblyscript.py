"""AssemblyScript: a core module, built with the compiler from npm that the folder pins."""

import tomllib
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_program

NODE = Tool(
    name="Node.js, 20 or newer",
    install="apt install nodejs npm",
    find=lambda: find_program("node"),
)
NPM = Tool(name="npm", install="apt install nodejs npm", find=lambda: find_program("npm"))

_COMPILER = Path("node_modules", ".bin", "asc")
_MODULE = Path("node_modules", ".cache", "policy.wasm")
"""As in the template's asconfig.json, which has the options too."""


def _build(folder: Path, _name: str, run: Run) -> Path:
    if not (folder / _COMPILER).exists():
        npm = NPM.find() or ["npm"]
        locked = (folder / "package-lock.json").is_file()
        run([*npm, "ci" if locked else "install", "--no-audit", "--no-fund"], folder, {})
    node = NODE.find() or ["node"]
    module = ["--outFile", str(_MODULE)]
    run([*node, str(_COMPILER), *_entries(folder), *module], folder, {})
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
