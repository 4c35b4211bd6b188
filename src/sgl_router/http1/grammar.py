"""What a head may look like (RFC 9110, section 5; RFC 9112, sections 2 to 5), as patterns.

Every pattern takes time linear in what it is given: a repeat of one class of bytes is possessive
(`++`), so that it is tried at one length only; what repeats as a group begins with a byte that
nothing else there begins with, so that there is one way to read it; a repeat of lines stands in an
atomic group (`(?>…)`) besides; and a search looks at a few bytes from each. Groups are not repeated
possessively: CPython has read such patterns wrongly (python/cpython#101955, python/cpython#106052).
"""

import re
from collections.abc import Iterable

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]"
TEXT = rb"[\t -~\x80-\xff]"
_SPACE = rb"[ \t]*+"

# RFC 9110, section 7.6.1, and what is between two neighbours only. `Expect` is answered by the
# router itself; `Host` is the engine's.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"host",
        b"http2-settings",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
LOOKED_INTO = HOP_BY_HOP | {b"content-length"}
"""Lower-case names of the headers that concern the router itself."""


def _caseless(name: bytes) -> bytes:
    """A pattern of `name` in any case: much faster here than the flag that ignores it."""
    return b"".join(
        b"[%b%b]" % (char.upper(), char) if char.isalpha() else re.escape(char)
        for char in (name[i : i + 1] for i in range(len(name)))
    )


def any_of(names: Iterable[bytes]) -> bytes:
    """A pattern of any of `names` (lower case, none the beginning of another) in any case.

    It branches byte by byte, so that a name that is none of them is left after a byte or two.
    """
    tails: dict[bytes, list[bytes]] = {}
    for name in sorted(names):
        tails.setdefault(name[:1], []).append(name[1:])
    branches = [
        _caseless(first + rest[0]) if len(rest) == 1 else _caseless(first) + any_of(rest)
        for first, rest in tails.items()
    ]
    return branches[0] if len(branches) == 1 else b"(?:%b)" % b"|".join(branches)


def _perhaps(names: frozenset[bytes]) -> bytes:
    """A pattern of all of these names and a colon, and of a few words that are like them.

    Two classes of bytes come first, which most other names do not pass: that is what is quick.
    """
    classes = (
        b"".join(sorted({char.upper() for char in chars} | chars))
        for chars in ({name[:1] for name in names}, {name[1:2] for name in names})
    )
    return b"[%b][%b]%b" % (*classes, any_of({name[2:] + b":" for name in names}))


# ---- header lines

_FIELD_LINE = rb"%b++:%b*+\r\n" % (TOKEN, TEXT)
FIELD_LINE = re.compile(_FIELD_LINE)
"""One header line; RFC 9112, section 5: no white space before the colon, no folding."""

FIELD = re.compile(rb"((%b++):%b(%b*+)\r\n)" % (TOKEN, _SPACE, TEXT))
"""Groups: the line, its name and its value, which white space may end."""

FIELD_NAME = re.compile(rb"%b++" % TOKEN)

MISPLACED = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?!\n|\Z)")
"""What no line of a head can hold, complete or not: a control byte, or a CR within it."""

_PLAIN = rb"(?>(?:(?!%b)%b++:%b*+\r\n)*)" % (_perhaps(LOOKED_INTO), TOKEN, TEXT)
_LENGTH = rb"%b:%b([0-9]{1,18}+)%b\r\n" % (_caseless(b"content-length"), _SPACE, _SPACE)
_PASSED_ON = rb"(%b(?:%b%b)?)" % (_PLAIN, _LENGTH, _PLAIN)
_LEFT_OUT = rb"(%b:%b(?:%b|%b)|%b:%b%b)%b\r\n" % (
    *(_caseless(b"connection"), _SPACE, _caseless(b"keep-alive"), _caseless(b"close")),
    *(_caseless(b"transfer-encoding"), _SPACE, _caseless(b"chunked"), _SPACE),
)

# Lines as nearly every head has them: of the headers that concern the router only a length, and
# one that is not passed on. Groups: the lines before that one, the length in them, that one, the
# lines after it, the length in them. A head that does not match is taken apart line by line.
_USUAL_LINES = rb"%b(?:%b%b)?\r\n" % (_PASSED_ON, _LEFT_OUT, _PASSED_ON)

# ---- hosts

_NAMED_HOST = rb"[A-Za-z0-9._~!$&'()*+,;=-]*+"
_PORT = rb"(?::[0-9]{0,5}+)?"
HOST = re.compile(
    rb"(?:\[([0-9A-Fa-f:.]++)\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]++|%%[0-9A-Fa-f]{2})*)%b" % _PORT
)
"""`uri-host [":" port]` (RFC 9110, section 7.2; RFC 3986, section 3.2.2); its group is an IPv6
address, of which the digits are for somebody else to judge."""

# ---- start lines

_METHOD = rb"[!#$%&'*+.^_`|~0-9A-Z-]++"
_PATH_REST = rb"[!\"$-.0->@-\[\]-~/]"  # visible bytes but `#`, `?` and `\`
_PATH = rb"/[!\"$&-\-/->@-\[\]-~]*+([.%%]%b*+)?" % _PATH_REST
_QUERY = rb"\?[!-\"$-~]*+"

USUAL_REQUEST = re.compile(
    rb"(?!CONNECT )(%b) ((%b)(?:%b)?) HTTP/1\.1\r\n%b:%b%b%b%b\r\n%b"
    % (
        *(_METHOD, _PATH, _QUERY, _caseless(b"host"), _SPACE, _NAMED_HOST, _PORT, _SPACE),
        _USUAL_LINES,
    )
)
"""A whole head of HTTP/1.1 with `Host` as its first line. Groups: method, target, path, what of the
path comes from its first dot or percent sign on, and those of the lines."""

USUAL_RESPONSE = re.compile(rb"HTTP/1\.1 ([1-9][0-9]{2})(?: (%b*+))?\r\n%b" % (TEXT, _USUAL_LINES))
"""A whole head of HTTP/1.1. Groups: status, reason, and those of the lines."""

_REQUEST_LINE = rb"(%b++) ([!-~]++)(?: HTTP/([0-9]\.[0-9]))?\r\n" % TOKEN
REQUEST_LINE = re.compile(_REQUEST_LINE)
"""Groups: method, target and version, without which it would be HTTP/0.9."""

_STATUS_LINE = rb"HTTP/(1\.[01]) ([1-9][0-9]{2})(?: (%b*+))?\r\n" % TEXT
STATUS_LINE = re.compile(_STATUS_LINE)
"""Groups: version, status and reason."""

ANY_REQUEST = re.compile(rb"%b((?>(?:%b)*))\r\n" % (_REQUEST_LINE, _FIELD_LINE))
ANY_RESPONSE = re.compile(rb"%b((?>(?:%b)*))\r\n" % (_STATUS_LINE, _FIELD_LINE))
"""A whole head of which every line is right for itself. Groups: the start line's, the others."""

ORIGIN_FORM = re.compile(rb"(%b)(?:%b)?" % (_PATH, _QUERY))
ABSOLUTE_FORM = re.compile(rb"[Hh][Tt][Tt][Pp][Ss]?://([^/?]++)((?:[/?][!-~]*+)?)")
"""Its authority, and what follows that."""

DOT_SEGMENT = re.compile(rb"(?:/|%2[Ff]|%5[Cc])(?:\.|%2[Ee])(?:\.|%2[Ee])?(?:\Z|/|%2[Ff]|%5[Cc])")
"""`/./` or `/../`, also at the end and in every spelling that comes to the same when decoded."""

# ---- chunks

CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15}+)\r\n")
CHUNK_LINE_START = re.compile(rb"([0-9A-Fa-f]{1,16}+)(?:\r?\Z|[;\t ])")
"""What a line with a chunk's size and extensions begins with, perhaps not yet complete."""

_QUOTED = rb"\"(?:[\t !#-\[\]-~\x80-\xff]++|\\[\t -~\x80-\xff])*\""
CHUNK_EXTENSIONS = re.compile(
    rb"(?:%b;%b%b++(?:%b=%b(?:%b++|%b))?)*"
    % (_SPACE, _SPACE, TOKEN, _SPACE, _SPACE, TOKEN, _QUOTED)
)
"""RFC 9112, section 7.1.1."""
