"""The documents agree with the code, and with each other."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if ".venv" not in path.parts and "target" not in path.parts
)


def test_the_options_page_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_options.py"))
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert script["page"]() == page


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", document.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (document.parent / target).exists(), target


def test_both_readmes_say_the_same() -> None:
    """Commands, links, tables and figures: whatever is not prose is the same in both."""
    english = (ROOT / "README.md").read_text(encoding="utf-8")
    chinese = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
    for text_of in (_code, _links, _headings, _figures):
        assert text_of(english) == text_of(chinese)


def _code(text: str) -> list[str]:
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"#.*", "", block) for block in blocks]


def _links(text: str) -> list[str]:
    return sorted(set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"})


def _headings(text: str) -> int:
    return len(re.findall(r"^## ", text, re.MULTILINE))


def _figures(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)? ?µs", text))


def test_each_test_that_behavior_names_is_there() -> None:
    text = (ROOT / "docs/behavior.md").read_text(encoding="utf-8")
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    named = re.findall(r"`((?:tests/\w+/)?test_\w+\.py|test_\w+)`", text)
    sources = "\n".join(path.read_text(encoding="utf-8") for path in files.values())
    missing = [
        name
        for name in named
        if (Path(name).name not in files if name.endswith(".py") else f"def {name}(" not in sources)
    ]
    assert named and not missing
