"""What somebody may have meant who wrote what is no option."""

import difflib
from collections.abc import Iterable

from sgl_router.config.refused import REFUSED


def hint(word: str, known: Iterable[str]) -> str:
    """`; the nearest is …`, with the reason where that one is refused; nothing where none is near.

    Args:
        word: a flag or a key.
        known: flags or keys, taken or refused; dashes, underscores and case are one.
    """
    by_shape = {_fold(name): name for name in known}
    near = difflib.get_close_matches(_fold(word), by_shape, n=1)
    if not near:
        return ""
    why = REFUSED.get(near[0])
    return f"; the nearest is {by_shape[near[0]]}" + (f", which is refused: {why}" if why else "")


def _fold(word: str) -> str:
    return word.lower().lstrip("-").replace("-", "_")
