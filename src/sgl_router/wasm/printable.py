"""Texts from a guest, made safe for logs, headers and pages."""


def printable(text: str, limit: int = 1024) -> str:
    """Cut to `limit` characters, with everything but printable ASCII escaped."""
    cut = text[:limit]
    if not (cut.isascii() and cut.isprintable()):
        cut = cut.encode("unicode_escape").decode("ascii")
    return cut if len(text) <= limit else f"{cut}… ({len(text):,} characters)"


def shown(value: object, limit: int = 80) -> str:
    """A JSON value for a message; of a list or an object only the type, however deep it is."""
    if isinstance(value, (list, dict)):
        return f"a {type(value).__name__}"
    return printable(repr(value), limit)
