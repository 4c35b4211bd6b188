"""Writes docs/options.md from the schema of the options."""

from pathlib import Path

from sgl_router.config import RouterConfig
from sgl_router.config.load import ENVIRONMENT_PREFIX, flag_of

PAGE = Path(__file__).parents[1] / "docs" / "options.md"
HEAD = """# Options of `sgl-router launch`

Written by `scripts/write_options.py` from the schema of the options; do not edit.

An option is a flag, an environment variable or a key of the YAML file that `--config FILE` names;
flags win over the environment, the environment over the file. A list is several words after a
flag, words separated by spaces in a variable, a YAML list in the file. Paths are relative to the
working directory.

| flag | key | variable | default | |
|---|---|---|---|---|
"""


def page() -> str:
    """The page's text."""
    rows = []
    for name, field in RouterConfig.model_fields.items():
        default = field.default
        shown = " ".join(default) if isinstance(default, tuple) else default
        cell = "" if shown in (None, "") else f"`{shown}`"
        rows.append(
            f"| `{flag_of(name)}` | `{name}` | `{ENVIRONMENT_PREFIX}{name.upper()}` | {cell} "
            f"| {field.description} |\n"
        )
    return HEAD + "".join(rows)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
