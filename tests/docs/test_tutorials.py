"""Who follows the pages for authors of plugins, command by command, gets where they say."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.toolchains import check_tools
from sgl_router.errors import BuildError
from tests.conftest import leave_out
from tests.docs.pages import ENGLISH_PAGES, Block, blocks, shown
from tests.docs.session import demo_router, languages, not_printed, of_language, run, script

_WAYS = [
    pytest.param(page, language, id=f"{shown(page)}{f'-{language}' if language else ''}")
    for page in ENGLISH_PAGES
    for language in languages(blocks(page))
    if any(block.kind == "sh" and "not run" not in block.said for block in blocks(page))
]
"""Pages in Chinese have the same commands, which another test says."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cargo")


@pytest.fixture
def url() -> Iterator[str]:
    with demo_router() as router:
        yield router


@pytest.mark.parametrize(("page", "language"), _WAYS)
def test_commands_do_what_the_page_says(
    page: Path, language: str | None, url: str, shared: Path, tmp_path: Path
) -> None:
    way = of_language(blocks(page), language)
    _check_tools(way, language)
    if language == "python":
        way = _without_building(way)
    output = run(script(way, url), tmp_path, url, shared)
    assert not_printed(way, output) == [], output


def _without_building(way: list[Block]) -> list[Block]:
    """What is made and changed, on a page for all languages.

    To build and compile a plugin in Python takes half a minute of CPU each time; its own tutorial
    does.
    """
    first, *_ = (block for block in way if "plugin new" in block.text and block.kind == "sh")
    folder = first.text.split()[3]
    changes = [block for block in way if block.kind == "diff" or "write" in block.said]
    assert changes, "something is to be seen"
    return [replace(first, text=f"{first.text}cd {folder}\n"), *changes]


def _check_tools(way: list[Block], language: str | None) -> None:
    commands = "".join(block.text for block in way if block.kind == "sh")
    for one in LANGUAGES:
        if one.name != language and f"--lang {one.name}" not in commands:
            continue
        try:
            check_tools(one)
        except BuildError as error:
            leave_out(str(error))
    programs = ["cargo"] * ("cargo " in commands)
    programs += ["patch"] * any(block.kind == "diff" for block in way)
    for program in programs:
        if shutil.which(program) is None:
            leave_out(f"{program} is not on the PATH")


# ---- what the tests themselves rely on


def block(kind: str, text: str, line: int, **said: dict[str, str]) -> Block:
    return Block(kind, text, line, {key.replace("_", " "): of for key, of in said.items()}, True)


def test_a_command_that_fails_fails_the_page(tmp_path: Path) -> None:
    one, two = block("sh", "cd /\n", 1), block("sh", "ls not-there\necho on\n", 3)
    with pytest.raises(AssertionError, match="not-there"):
        run(script([one, two], "http://x"), tmp_path, "http://x", tmp_path)
    expected = block("sh", two.text, 3, fails={})
    output = run(script([one, expected], "http://x"), tmp_path, "http://x", tmp_path)
    assert "on" not in output.split()
    with pytest.raises(AssertionError, match="line 5 was to fail"):
        run(
            script([block("sh", "true\n", 5, fails={})], "http://x"), tmp_path, "http://x", tmp_path
        )


def test_output_is_compared(tmp_path: Path) -> None:
    ran = block("sh", "echo one 12; echo it took 17.5 ms; echo three four\n", 1)
    output = run(script([ran], "http://x"), tmp_path, "http://x", tmp_path)
    same = block("text", "one  12\nit took 900 µs\nthree …\n", 4)
    assert not_printed([ran, same], output) == []
    other = block("text", "it took 900 µs\none 12\nthree five\none 13\n", 4)
    assert not_printed([ran, other], output) == [
        "line 4: one 12",
        "line 4: three five",
        "line 4: one 13",
    ]
    left = block("text", "anything\n", 4, not_checked={})
    assert not_printed([ran, left], output) == []


def test_a_diff_is_applied_and_a_file_written(tmp_path: Path) -> None:
    wrote = block("rust", "", 1, write={"file": "a/b.txt", "source": "tests/docs/__init__.py"})
    change = block("diff", "--- a/b.txt\n+++ b/b.txt\n@@ -0,0 +1 @@\n+one\n", 2, apply={})
    looked = block("sh", "cat b.txt\n", 3)
    steps = [wrote, block("sh", "cd a\n", 1), change, looked]
    assert "one" in run(script(steps, "http://x"), tmp_path, "http://x", tmp_path).split()
