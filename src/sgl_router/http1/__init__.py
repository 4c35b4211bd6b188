"""HTTP/1.1 as bytes (RFC 9110, RFC 9112): parsers and encoders, no I/O.

A parser has one verb, `feed`, which returns what the bytes completed: a head, a piece of the body,
`END`, or a `ProtocolError` as the last event of a connection. When to read, to write and to give
up is the caller's business.

A head that looks as nearly all do is read by one pattern (`grammar.py`) and passed on as slices of
what came. Any other is taken apart line by line (`framing.py`), with the same result; one that
comes in pieces is put together first (`lines.py`).
"""
