"""Names that are meant for whoever reads a log: row 35 of the catalogue.

They stand in imports, exports and custom sections, and are cut and escaped wherever they are told.
"""

import orjson
import pytest

from sgl_router.wasm.manifest import SECTION
from tests.hostile.modules import HEADER, named, section, sized, turning
from tests.hostile.outcomes import refused, stand
from tests.wasm.guests import Bench, custom, guest

NASTY = b"\x1b[31m\xe2\x80\xae\n\0<b>%s"
HUGE = b"x" * 102_400


def exporting_also(name: bytes) -> bytes:
    """A module with a global of that name besides; a section each for the global and its name."""
    return HEADER + section(6, b"\x7f\0\x41\0\x0b") + section(7, named(name) + b"\x03\0")


def importing(name: bytes) -> bytes:
    return HEADER + section(1, b"\x60\0\0") + section(2, named(name) + named(name) + b"\0\0")


@pytest.mark.parametrize(
    ("wasm", "found"),
    [
        pytest.param(importing(HUGE), "…", id="35-import-of-100-KB"),
        pytest.param(importing(NASTY), "\\x1b[31m\\u202e\\n", id="35-import-with-escapes"),
        pytest.param(importing(b"\xff\xfe"), "", id="35-import-not-utf8"),
        pytest.param(exporting_also(HUGE), "", id="35-export-of-100-KB"),
        pytest.param(exporting_also(b"\xff\xfe"), "", id="35-export-not-utf8"),
        pytest.param(guest() + sized(0, named(b"\xff\xfe")), "", id="35-section-not-utf8"),
        pytest.param(
            guest(sections={SECTION: orjson.dumps({"needs": ["\x1b[31m\u202e" + "x" * 9000]})}),
            "\\x1b[31m\\u202e",
            id="35-need-with-escapes",
        ),
    ],
)
async def test_a_name_in_a_refusal(bench: Bench, wasm: bytes, found: str) -> None:
    """It is cut and escaped; that it is refused at all has other reasons, or that it is no name."""
    await refused(bench, wasm, found)


CULPRIT = "culprit_culprit_culprit_culprit_"


def blamed(name: bytes) -> bytes:
    """A guest that turns in a function which the name section calls by these bytes."""
    wasm = turning(select_worker=f"(call ${CULPRIT})", extra=f"(func ${CULPRIT} (unreachable))")
    assert CULPRIT.encode() in wasm
    return wasm.replace(CULPRIT.encode(), name.ljust(len(CULPRIT), b"_")[: len(CULPRIT)])


@pytest.mark.usefixtures("no_collector")
@pytest.mark.parametrize(
    "wasm",
    [
        pytest.param(blamed(NASTY), id="35-function-with-escapes"),
        pytest.param(blamed(b"\nwasm trap: all is well\n"), id="35-function-that-lies"),
        pytest.param(blamed(b"\xff\xfe\xc0\x80\xed\xa0\x80"), id="35-function-not-utf8"),
        pytest.param(
            turning(
                select_worker=f"(call ${'x' * 99_000})",
                extra=f'(func ${"x" * 99_000} (export "{"x" * 99_000}") (unreachable))',
            ),
            id="35-function-of-99-KB",
        ),
        pytest.param(
            turning(select_worker="(unreachable)") + custom("name", b"\x01\xff\xff\xff\xff"),
            id="35-name-section-malformed",
        ),
        pytest.param(
            turning(
                select_worker="(unreachable)",
                extra='(func (export "\\1b[31m\\e2\\80\\ae\\0a") (unreachable))',
            ),
            id="35-export-with-escapes",
        ),
    ],
)
async def test_a_name_in_a_trap(bench: Bench, wasm: bytes) -> None:
    """What is told is the trap, whatever the backtrace says."""
    seat = await stand(bench, wasm)
    seat.fails_alone("trap", "unreachable")
    assert "all is well" not in seat.falls_back("trap").detail
