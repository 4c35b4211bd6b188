"""Texts from a router, made safe for a terminal.

A router's answer may hold what a plugin wrote, or be no router's at all: without its escapes it
cannot move the cursor, change what stands on the screen or turn the direction of writing.
"""

_TEXT_LIMIT = 4_000


def escaped(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Cut to `limit` characters, each that is not printable (`str.isprintable`) as an escape."""
    cut = "".join(char if char.isprintable() else _escape(char) for char in text[:limit])
    return cut if len(text) <= limit else f"{cut}… ({len(text):,} characters)"


def escaped_lines(text: str) -> str:
    """The whole of it, its line ends kept."""
    return "\n".join(escaped(line, len(line)) for line in text.split("\n"))


def escaped_json(text: str) -> str:
    r"""The same JSON, in which whatever is not printable is `\uXXXX`; lines and indents stay.

    Args:
        text: valid JSON: outside of its strings, a control character can only be white space.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else _escape_in_json(char) for char in text
    )


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _escape_in_json(char: str) -> str:
    if char == "\r":
        return ""
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[i : i + 2].hex()}" for i in range(0, len(units), 2))
