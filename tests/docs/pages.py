"""The pages for authors of plugins: what stands in their fences, and what is said of each.

A comment before a fence says what its text is:

    <!-- from PATH -->              stands so in that file of the repository, contiguous
    <!-- write FILE from PATH -->   is that file as a whole; the reader saves it as FILE
    <!-- apply -->                  of a `diff`: the reader changes FILE so
    <!-- only LANGUAGE -->          for who has chosen this language of plugins
    <!-- fails -->                  of `sh`: the commands fail, as the page says
    <!-- not run -->                of `sh`: not run, as it does not end or needs what tests lack
    <!-- not checked -->            of `text`: not compared with what the commands before it print
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]

_PATTERNS = (
    "wasm_plugins*.md",
    "first-policy*.md",
    "tutorials/*.md",
    "abi*.md",
    "why-refused*.md",
)
PAGES = sorted(path for pattern in _PATTERNS for path in (ROOT / "docs").glob(pattern))

CHINESE = ".zh-CN.md"
ENGLISH_PAGES = [path for path in PAGES if not path.name.endswith(CHINESE)]

CODE = frozenset(
    {"rust", "python", "go", "zig", "typescript", "toml", "yaml", "json", "wit", "c", "javascript"}
)
"""What a reader may take over: each such fence stands in a file that a test reads."""

PLAIN = frozenset({"text", "console"})

_FENCE = re.compile(r"^( *)(`{3,})(\w*)\n(.*?)^\1\2 *$\n?", re.MULTILINE | re.DOTALL)
_COMMENTS = re.compile(r"((?:^ *<!-- .* -->\n\n?)+)\Z", re.MULTILINE)
_COMMENT = re.compile(r"<!-- (.*?) -->")
_DIRECTIVES = {
    "from": re.compile(r"from (?P<source>\S+)"),
    "write": re.compile(r"write (?P<file>\S+) from (?P<source>\S+)"),
    "apply": re.compile(r"apply"),
    "only": re.compile(r"only (?P<language>\w+)"),
    "fails": re.compile(r"fails"),
    "not run": re.compile(r"not run"),
    "not checked": re.compile(r"not checked"),
}


@dataclass(frozen=True, slots=True)
class Block:
    """A fence of a page.

    Attributes:
        kind: the word behind its back-quotes.
        text: without the fence and its indentation.
        line: of the page, where it begins.
        said: the comments before it, each by its first words with what it names.
        close: nothing stands between it and the block before.
    """

    kind: str
    text: str
    line: int
    said: dict[str, dict[str, str]]
    close: bool

    @property
    def language(self) -> str | None:
        """Of plugins, where it is for authors in one language only."""
        return self.said["only"]["language"] if "only" in self.said else None

    def source(self) -> str | None:
        """The file that it is from."""
        for directive in ("from", "write"):
            if directive in self.said:
                return self.said[directive]["source"]
        return None


@cache
def blocks(page: Path) -> Sequence[Block]:
    """All fences of a page, in order."""
    return list(_blocks(page.read_text(encoding="utf-8")))


def _blocks(text: str) -> Iterator[Block]:
    end = 0
    for fence in _FENCE.finditer(text):
        before = text[end : fence.start()]
        comments = _COMMENTS.search(before)
        said = {}
        if comments:
            before = before[: comments.start()]
            said = dict(_said(comment) for comment in _COMMENT.findall(comments[1]))
        yield Block(
            kind=fence[3],
            text=dedent(fence[4]),
            line=text.count("\n", 0, fence.start()) + 1,
            said=said,
            close=end > 0 and not before.strip(),
        )
        end = fence.end()


def _said(comment: str) -> tuple[str, dict[str, str]]:
    for directive, pattern in _DIRECTIVES.items():
        if found := pattern.fullmatch(comment):
            return directive, found.groupdict()
    raise ValueError(f"<!-- {comment} --> before a fence; expected one of {list(_DIRECTIVES)}")


def prose(page: Path) -> str:
    """A page without its fences and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")))


def counterpart(page: Path) -> Path:
    """The same page in the other language."""
    if page.name.endswith(CHINESE):
        return page.with_name(page.name.removesuffix(CHINESE) + ".md")
    return page.with_name(page.stem + CHINESE)


def shown(page: Path) -> str:
    """A page's name as a test's."""
    return str(page.relative_to(ROOT / "docs"))
