"""HTTP/1.1 as bytes (RFC 9110, RFC 9112): parsers and encoders, no I/O.

A parser has one verb, `feed`, which returns what the bytes completed: a head, pieces of the body,
`END`, or a `ProtocolError` as the last event of a connection. When to read, to write and to give
up is the caller's business.
"""
