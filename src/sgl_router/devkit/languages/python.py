"""Python: a component, with the interpreter in it, built with componentize-py."""

from collections.abc import Sequence
from pathlib import Path

from sgl_router.devkit.language import Language, Run, Tool
from sgl_router.devkit.toolchains import find_program

_MEMORY_BYTES = 32 * 1024 * 1024


def _find() -> Sequence[str] | None:
    return find_program("componentize-py")


_TOOL = Tool(name="componentize-py", install="pip install 'componentize-py>=0.25'", find=_find)


def _build(folder: Path, _name: str, run: Run) -> Path:
    module = folder / "build" / ".policy.wasm"
    module.parent.mkdir(exist_ok=True)
    world = ["--wit-path", "wit", "--world", "policy-plugin"]
    run(
        [*_TOOL.command(), *world, "componentize", "--stub-wasi", "app", "-o", str(module)],
        folder,
        {},
    )
    return module


PYTHON = Language(
    name="python",
    policy_file="policy.py",
    tools=(_TOOL,),
    build=_build,
    settings={"max_memory_bytes": _MEMORY_BYTES},
)
