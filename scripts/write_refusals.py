"""Writes docs/why-refused.md and docs/why-refused.zh-CN.md from the catalogue of refusals."""

import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from sgl_router.wasm.refusals import refusals

DOCS = Path(__file__).parents[1] / "docs"


def pages() -> dict[Path, str]:
    """Each page's path and text."""
    english = {str(code): asdict(refusal) for code, refusal in refusals().items()}
    chinese = texts("zh-CN")
    return {
        DOCS / "why-refused.md": _page(texts("en")["page"], english),
        DOCS / "why-refused.zh-CN.md": _page(chinese["page"], chinese["refusals"]),
    }


def texts(language: str) -> Mapping[str, Any]:
    """What stands beside this script in a language: `page`, and of a translation `refusals`."""
    path = Path(__file__).with_name(f"why_refused.{language}.toml")
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _page(page: Mapping[str, Any], entries: Mapping[str, Mapping[str, str]]) -> str:
    parts = [page["head"]]
    for about, codes in groupby(refusals(), lambda code: refusals()[code].about):
        parts.append(f"\n## {page['titles'][about]}\n")
        for code in codes:
            entry, example = entries[code], refusals()[code].example
            parts.append(
                f"\n### `{code}`\n\n{entry['cause']}\n\n```text\n{example}\n```\n\n"
                f"{page['remedy']}{entry['remedy']}\n"
            )
    return "".join(parts)


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
