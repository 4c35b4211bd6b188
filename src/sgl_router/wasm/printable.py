"""Texts from a guest, made safe for logs, headers and pages."""


def printable(text: str, limit: int = 1024) -> str:
    """Cut to `limit` characters, with everything but printable ASCII escaped."""
    cut = text[:limit]
    if not (cut.isascii() and cut.isprintable()):
        cut = cut.encode("unicode_escape").decode("ascii")
    return cut if len(text) <= limit else f"{cut}… ({len(text):,} characters)"
