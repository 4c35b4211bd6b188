"""What the pages for authors of plugins show is what is there, in both languages."""

import json
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent

import pytest

from sgl_router.devkit.languages import LANGUAGES
from tests.docs.pages import (
    CODE,
    ENGLISH_PAGES,
    PAGES,
    PLAIN,
    ROOT,
    Block,
    blocks,
    counterpart,
    prose,
    shown,
)

_TESTED = ("examples/", "src/", "tests/", "scripts/")
"""Where files are that a test runs, builds or reads."""

each_page = pytest.mark.parametrize("page", PAGES, ids=shown)
each_pair = pytest.mark.parametrize("page", ENGLISH_PAGES, ids=shown)


@each_page
def test_each_fence_says_what_it_is(page: Path) -> None:
    for block in blocks(page):
        at = f"line {block.line}"
        assert block.kind in CODE | PLAIN | {"sh", "diff"}, at
        if block.kind in CODE:
            assert block.source() is not None, f"{at}: needs <!-- from PATH --> before it"
        if block.kind == "diff":
            assert "apply" in block.said, f"{at}: needs <!-- apply --> before it"
        if block.language is not None:
            assert block.language in {one.name for one in LANGUAGES}, at


@each_page
def test_each_snippet_stands_in_its_file(page: Path) -> None:
    for block in blocks(page):
        source = block.source()
        if source is None:
            continue
        assert source.startswith(_TESTED), f"line {block.line}: no test reads {source}"
        text = (ROOT / source).read_text(encoding="utf-8")
        if "write" in block.said:
            assert text == block.text, f"line {block.line}: is not {source} as a whole"
        else:
            assert _stands_in(block.text, text), f"line {block.line}: does not stand in {source}"


def _stands_in(snippet: str, text: str) -> bool:
    """Whether its lines stand there contiguously, but for an indentation that they share."""
    lines, wanted = text.splitlines(), dedent(snippet).splitlines()
    return bool(wanted) and any(
        dedent("\n".join(lines[first : first + len(wanted)])).splitlines() == wanted
        for first in range(len(lines) - len(wanted) + 1)
    )


def test_a_snippet_is_found_only_where_it_stands() -> None:
    text = "fn one() {\n    two();\n    three();\n}\n"
    assert _stands_in("two();\nthree();\n", text)
    assert _stands_in(text, text)
    assert not _stands_in("two();\n}\n", text)
    assert not _stands_in("fn one() {\n}\n", text)
    assert not _stands_in("two()", text)
    assert not _stands_in("", text)


@each_page
def test_data_can_be_read(page: Path) -> None:
    for block in blocks(page):
        if block.kind == "json":
            json.loads(block.text)
        elif block.kind == "toml":
            tomllib.loads(block.text)


# ---- both languages say the same


@each_page
def test_each_page_is_there_in_both_languages(page: Path) -> None:
    other = counterpart(page)
    assert other.exists(), other.name
    head = page.read_text(encoding="utf-8").splitlines()[:6]
    assert any(f"]({other.name})" in line for line in head), f"no link to {other.name} at its top"


@each_pair
def test_both_have_the_same_fences(page: Path) -> None:
    ours, theirs = ([_same(block) for block in blocks(one)] for one in (page, counterpart(page)))
    assert ours == theirs


def _same(block: Block) -> tuple[str, str, dict[str, dict[str, str]]]:
    """Of a fence what does not depend on the language of the page: not the remarks in it."""
    text = block.text
    if block.kind in {"sh", "console"}:
        text = re.sub(r"(^|\s+)# .*", "", text)
    return block.kind, text, block.said


@each_pair
def test_both_have_the_same_links(page: Path) -> None:
    other = counterpart(page)
    assert _links(page, other.name) == _links(other, page.name)


def _links(page: Path, other: str) -> list[str]:
    """Where links lead, without anchors, which are words; and a page in both languages is one."""
    found = re.findall(r"\]\(([^)#]+)", prose(page))
    return sorted({link.replace(".zh-CN.md", ".md") for link in found if link != other})


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ENGLISH_PAGES], ids=shown)
def test_links_in_chinese_lead_to_pages_in_chinese(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#]+\.md)", prose(page)):
        if "://" in link or link.endswith(".zh-CN.md") or link == counterpart(page).name:
            continue
        assert not counterpart((page.parent / link).resolve()).exists(), link


@each_pair
def test_both_have_the_same_headings(page: Path) -> None:
    ours, theirs = (re.findall(r"^#+ ", prose(one), re.MULTILINE) for one in _both(page))
    assert ours == theirs


@each_pair
def test_both_have_the_same_tables(page: Path) -> None:
    ours, theirs = (_tables(prose(one)) for one in _both(page))
    assert ours == theirs


def _tables(text: str) -> list[tuple[int, Sequence[str]]]:
    """Each row's number of cells, and the code in it."""
    rows = re.findall(r"^\|.*\|$", text, re.MULTILINE)
    return [(row.count("|"), sorted(re.findall(r"`[^`]+`", row))) for row in rows]


@each_pair
def test_both_have_the_same_code_and_figures(page: Path) -> None:
    for pattern in (r"`[^`\n]+`", r"\d[\d,.]* ?(?:[µm]s|s|[KMG]i?B|%)(?![\w])"):
        ours, theirs = (
            {found.replace(".zh-CN.md", ".md") for found in re.findall(pattern, prose(one))}
            for one in _both(page)
        )
        assert ours == theirs


def _both(page: Path) -> tuple[Path, Path]:
    return page, counterpart(page)
