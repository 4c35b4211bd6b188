"""The commands of a page as one script, and what it prints held against what the page shows."""

import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.docs.pages import ROOT, Block

USUAL_URL = "http://127.0.0.1:30000"

_MARK = "\x1e"
_SPEAKS_TO_A_ROUTER = "list|show|load|reload|rollback|unload|use|shadow|promote|dev"
_PRELUDE = f"""\
set -e
sgl-router() {{
    if [ "$1" = plugin ]; then
        case $2 in
        {_SPEAKS_TO_A_ROUTER}) command sgl-router "$@" --router "$ROUTER"; return ;;
        bench) command sgl-router "$@" --seconds 0.2; return ;;
        esac
    fi
    command sgl-router "$@"
}}
"""


@contextmanager
def demo_router() -> Iterator[str]:
    """`sgl-router demo --serve`, as a page has its readers start it: the router's URL."""
    command = [sys.executable, "-m", "sgl_router", "demo", "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"router at (http://\S+?),", line):
                    yield found[1]
                    return
            raise AssertionError("the demo did not start")
        finally:
            process.terminate()


def languages(page: Sequence[Block]) -> list[str | None]:
    """Those of plugins between which a page has its readers choose; else None alone."""
    chosen: list[str | None] = []
    chosen += sorted({block.language for block in page if block.language})
    return chosen or [None]


def of_language(page: Sequence[Block], language: str | None) -> list[Block]:
    """What a reader goes through who has chosen this language."""
    return [block for block in page if block.language in (None, language)]


def script(page: Sequence[Block], url: str) -> str:
    """A script for bash of all that a reader does."""
    parts = [_PRELUDE]
    for block in page:
        if step := _step(block):
            parts.append(f"printf '\\n{_MARK}%s\\n' {block.line}\n{step}")
    return "".join(parts).replace(USUAL_URL, url)


def _step(block: Block) -> str:
    if "not run" in block.said:
        return ""
    if "write" in block.said:
        file = block.said["write"]["file"]
        return f'mkdir -p "$(dirname {file})"\ncp "{ROOT / (block.source() or "")}" {file}\n'
    if block.kind == "diff":
        return f"patch --strip 1 --no-backup-if-mismatch <<'END OF DIFF'\n{block.text}END OF DIFF\n"
    if block.kind != "sh":
        return ""
    if "fails" not in block.said:
        return block.text
    return (
        f"set +e; ( set -e\n{block.text}); status=$?; set -e\n"
        f'[ "$status" -ne 0 ] || {{ echo "line {block.line} was to fail"; exit 97; }}\n'
    )


def run(text: str, folder: Path, url: str, shared: Path) -> str:
    """Run a script in an empty folder; returns what it printed.

    Args:
        shared: a folder in which Cargo keeps what it has compiled, from one page to the next.

    Raises AssertionError where it fails.
    """
    done = subprocess.run(
        ["bash", "-c", text],
        cwd=folder,
        env={
            **os.environ,
            "PATH": f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}",
            "ROUTER": url,
            "SGL_ROUTER": str(ROOT),
            "CARGO_TARGET_DIR": str(shared),
            "COLUMNS": "100",
            "no_proxy": "*",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}:\n{done.stdout[-6000:]}"
    return done.stdout.replace(url, USUAL_URL)


def not_printed(page: Sequence[Block], output: str) -> list[str]:
    """The lines of `text` blocks that the commands right before them have not printed so.

    Times, sizes, identities of versions and whatever stands beside them may differ; `…` stands for
    anything.
    """
    printed = {}
    for part in output.split(_MARK)[1:]:
        line, _, rest = part.partition("\n")
        printed[int(line)] = rest.splitlines()
    missing: list[str] = []
    lines: list[str] = []
    for block in page:
        if block.line in printed:
            lines = [_comparable(line) for line in printed[block.line]]
        if block.kind == "text" and block.close and "not checked" not in block.said:
            missing += _missing(block, lines)
    return missing


def _missing(block: Block, printed: Sequence[str]) -> list[str]:
    """Lines of a block that do not come in this order; each is looked for behind the one before."""
    missing, at = [], 0
    for line in block.text.splitlines():
        pattern = re.escape(_comparable(line)).replace("…", ".*")
        for number in range(at, len(printed)):
            if re.fullmatch(pattern, printed[number]):
                at = number + 1
                break
        else:
            missing.append(f"line {block.line}: {line}")
    return missing


def _comparable(line: str) -> str:
    line = re.sub(r"\b[0-9a-f]{12}(?:…|-\d+\b)", "VERSION", line)
    line = re.sub(r"\b[0-9a-f]{64}\b", "SHA256", line)
    line = re.sub(r"\b20\d\d-\d\d-\d\d[ T]\d\d:\d\d:\d\d", "DATE", line)
    if re.search(r"\d ?(?:[µm]?s\b|%|bytes\b)|0x[0-9a-f]", line):
        line = re.sub(r"\b0x[0-9a-f]+|\b\d[\d,.]*", "0", line)
        line = re.sub(r"\b0 (?:µs|ms|s)\b", "0 s", line)
    line = re.sub(r"\b\d{1,3}(?:,\d{3})+\b|\b\d{4,}\b", "0", line)
    return " ".join(line.split())
