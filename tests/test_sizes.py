"""No file and no function grows beyond what can be read in one go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def sources() -> list[Path]:
    return [
        path for folder in ("src", "tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    ]


def long_functions(tree: ast.AST) -> list[tuple[str, int, int]]:
    """Name, line and length of each function that is too long, from its `def` to its end."""
    return [
        (node.name, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES
    ]


def test_files() -> None:
    paths = sources()
    assert paths, "there is something to measure"
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in paths
    }
    offenders = [f"{name}: {n} lines" for name, n in lengths.items() if n > MAX_FILE_LINES]
    assert not offenders, f"more than {MAX_FILE_LINES} lines:\n" + "\n".join(sorted(offenders))


def test_functions() -> None:
    offenders = [
        f"{path.relative_to(ROOT)}:{line} {name}: {length} lines"
        for path in sources()
        for name, line, length in long_functions(ast.parse(path.read_text("utf-8")))
    ]
    assert not offenders, f"more than {MAX_FUNCTION_LINES} lines:\n" + "\n".join(sorted(offenders))


@pytest.mark.parametrize(
    ("template", "inner"),
    [
        ("def f():\n{}", "    x = 1\n"),
        ("@decorator\nasync def f():\n{}", "    x = 1\n"),
        ("class C:\n    def f(self):\n{}", "        x = 1\n"),
        ("def outer(): return 1\ndef f(\n    a,\n):\n{}", "    x = 1\n"),
    ],
)
def test_the_measure_itself(template: str, inner: str) -> None:
    head = template.format("").count("\n") - template.split("def f", maxsplit=1)[0].count("\n")
    longest = template.format(inner * (MAX_FUNCTION_LINES - head))
    assert long_functions(ast.parse(longest)) == []
    ((name, _, length),) = long_functions(ast.parse(longest + inner))
    assert (name, length) == ("f", MAX_FUNCTION_LINES + 1)
