"""Encodings of the plugin contract: bytes in, bytes out."""
