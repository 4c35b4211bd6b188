"""Hostile components: they decide well until the text of a request is long."""

from typing import Any

from tests.hostile.modules import LONG_BYTES
from tests.wasm.component_guests import RESULT_AT, TEXT_AT, answer, component

GOOD_STATE = b'{"n": 1}'
GOOD = answer(0, (TEXT_AT, len(GOOD_STATE)))
LONG_TEXT = f"""(if (i32.load8_u offset=8 (local.get $input)) (then
  (if (i32.ge_u (i32.load offset=16 (local.get $input)) (i32.const {LONG_BYTES})) (then {{}}))))"""
"""In `select`: where the text is long. (Of the input the option of the text stands at 8.)"""


def turning(select: str = "", **parts: Any) -> bytes:
    """A component that decides well, but does what the body says where the text is long."""
    return component(
        GOOD,
        text=GOOD_STATE,
        select=f"{LONG_TEXT.format(select)} (i32.const {RESULT_AT})",
        **parts,
    )


def returning(result: bytes, **parts: Any) -> bytes:
    """A component that returns this where the text is long."""
    at = 2048
    escaped = "".join(f"\\{byte:02x}" for byte in result)
    extra = parts.pop("extra", "") + f'(data (i32.const {at}) "{escaped}")'
    return turning(f"(return (i32.const {at}))", extra=extra, **parts)
