"""What the headers of a head that concern the router itself say, taken one by one.

Framing that two parties could read differently is refused here (RFC 9112, sections 6.1 and 6.3).
"""

import ipaddress

from sgl_router.errors import ProtocolError
from sgl_router.http1.grammar import FIELD, FIELD_NAME, HOP_BY_HOP, HOST, LOOKED_INTO
from sgl_router.http1.head import Head, without

Special = dict[bytes, list[bytes]]
"""Lower-case name -> the values of all its lines, in order."""

FRAMING = frozenset({b"content-length", b"transfer-encoding"})

# What `Connection` names is between two neighbours (RFC 9110, section 7.6.1), but for these: they
# are no headers, or the message would have no end without them.
_NOT_NAMES = FRAMING | {b"close", b"keep-alive", b""}


def take_apart(head: Head, block: bytes, *, http10: bool) -> Special:
    """Set what `block`, the header lines of `head`, says; those that concern the router.

    Raises ProtocolError where it is not clear how the body is framed.
    """
    found: Special = {}
    passed_on: list[bytes] = []
    for line, name, value in FIELD.findall(block):
        lower = name.lower()
        if lower in LOOKED_INTO:
            found.setdefault(lower, []).append(value.rstrip(b" \t"))
        if lower not in HOP_BY_HOP:
            passed_on.append(line)
    head.lines = b"".join(passed_on)
    head.keep_alive = not http10
    if b"connection" in found:
        listed = b",".join(found[b"connection"]).lower().split(b",")
        options = frozenset([option.strip(b" \t") for option in listed])
        named = options - _NOT_NAMES
        if named:
            head.lines = without(head.lines, named)
        head.keep_alive = b"close" not in options and (not http10 or b"keep-alive" in options)
    _set_framing(head, found, http10=http10)
    return found


def _set_framing(head: Head, found: Special, *, http10: bool) -> None:
    lengths = found.get(b"content-length", [])
    codings = found.get(b"transfer-encoding", [])
    if lengths and codings:
        raise ProtocolError("both Content-Length and Transfer-Encoding are given; one may be")
    if len(lengths) > 1 or len(codings) > 1:
        name = "Content-Length" if lengths else "Transfer-Encoding"
        raise ProtocolError(f"{name} is given more than once; it may be given once")
    if lengths:
        head.content_length = _length(lengths[0])
    if codings:
        if http10:  # RFC 9112, section 6.1: faulty framing
            raise ProtocolError("HTTP/1.0 has no Transfer-Encoding; HTTP/1.1 has")
        _check_coding(codings[0])
        head.chunked = True


def is_host(value: bytes) -> bool:
    """Whether this is a host and perhaps a port; the empty one is a host here."""
    match = HOST.fullmatch(value)
    if match is None:
        return False
    if match[1] is None:
        return True
    try:
        ipaddress.IPv6Address(match[1].decode("ascii"))
    except ipaddress.AddressValueError:
        return False
    return True


def _length(value: bytes) -> int:
    if not value.isdigit() or len(value) > 18:
        raise ProtocolError(
            f"Content-Length is {value[:40]!r}; it must be a number of at most 18 digits"
        )
    return int(value)


def _check_coding(value: bytes) -> None:
    """Chunked alone. Another coding is one that the router lacks; what only looks like chunked
    is an attempt to have two parties read it differently."""
    coding = value.lower()
    if coding == b"chunked":
        return
    listed = [member.strip(b" \t") for member in coding.split(b",")]
    if len(listed) > 1 and listed[-1] == b"chunked":
        listed.pop()
    another = all(FIELD_NAME.fullmatch(member) and b"chunk" not in member for member in listed)
    raise ProtocolError(
        f"Transfer-Encoding is {value[:40]!r}; only `chunked` is supported",
        status=501 if another else 400,
    )
