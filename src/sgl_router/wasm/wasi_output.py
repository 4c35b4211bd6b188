"""What a guest prints: to the log by lines, and the end of it for whoever asks why it failed."""

import logging
import re

from sgl_router.wasm.printable import printable

MAX_OUTPUT_BYTES = 4 * 1024
"""Of stdout and stderr together, for one call: so much from its beginning is logged, and so much of
its end is kept."""

MAX_OUTPUT_LINES = 64
"""That are logged for one call; the stack of a Go program that panics has some forty."""

# What Go's runtime and AssemblyScript's `abort` print.
_PANIC = re.compile(r"^(?:panic: |fatal error: |abort: ).*", re.MULTILINE)

_log = logging.getLogger(__name__)


class GuestOutput:
    """Of one instance at a time: a line may come in any number of pieces."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._used = False
        self._begin()

    def begin(self) -> None:
        """A call is about to begin."""
        if self._used:
            self._begin()

    def _begin(self) -> None:
        self._used = False
        self._left = MAX_OUTPUT_BYTES
        self._lines_left = MAX_OUTPUT_LINES
        self._partial: dict[int, bytes] = {}
        self._tail = b""

    def write(self, descriptor: int, head: bytes, tail: bytes) -> None:
        """What was written at once: its first and its last `MAX_OUTPUT_BYTES`, or all of it."""
        self._used = True
        self._tail = (self._tail + tail)[-MAX_OUTPUT_BYTES:]
        kept = head[: self._left]
        if not kept:
            return
        self._left -= len(kept)
        *lines, rest = (self._partial.pop(descriptor, b"") + kept).split(b"\n")
        for line in lines:
            self._log_line(line)
        if rest:
            self._partial[descriptor] = rest
        if not self._left:
            self.end()

    def end(self) -> None:
        """The call is over: lines without an end are lines too."""
        for line in self._partial.values():
            self._log_line(line)
        self._partial.clear()

    @property
    def last(self) -> str | None:
        """The end of what was printed, its lines cut and escaped; None where nothing was."""
        text = self._tail.decode("utf-8", "replace").strip()
        return "\n".join(map(_shown, text.splitlines())) or None

    def _log_line(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip("\r")
        if text and self._lines_left:
            self._lines_left -= 1
            _log.info("plugin %s: %s", self._plugin, _shown(text))


def _shown(line: str) -> str:
    return printable(line.expandtabs(4), MAX_OUTPUT_BYTES)


def panic_in(output: str | None) -> str | None:
    """The line that tells why a program of a language with a runtime has ended, if any does."""
    found = _PANIC.search(output or "")
    return None if found is None else found[0].rstrip()
