"""The router as a process of its own, started as a user starts it."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

_LISTENING = re.compile(r"listening on (http://\S+),")


@dataclass
class RouterProcess:
    """A running `sgl-router launch`; `log` is what it wrote until it listened."""

    process: subprocess.Popen[str]
    url: str
    log: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    async def next_line(self) -> str:
        """The next line of its log."""
        assert self.process.stderr is not None
        return await asyncio.to_thread(self.process.stderr.readline)

    async def ended(self) -> int:
        """Its exit status."""
        return await asyncio.to_thread(self.process.wait, 30)


@contextmanager
def launched(*arguments: str, module: str = "sgl_router.launch_router") -> Iterator[RouterProcess]:
    """Start the router on a free port; fails with its log where it does not listen."""
    command = [sys.executable, "-m", module, "--host", "127.0.0.1", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = ""
        try:
            for line in process.stderr:
                log += line
                if match := _LISTENING.search(line):
                    yield RouterProcess(process, match[1], log)
                    return
            raise AssertionError(f"the router did not start:\n{log}")
        finally:
            process.kill()
