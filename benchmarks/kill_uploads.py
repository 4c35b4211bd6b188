"""A thousand uploads, killed at random points: is the old version there, or the new one, whole?

Hard about it: a death between two steps of an upload is seen only where it falls between them, so
each is put at a random share of what an upload takes, and it is counted how many fell within one
and which version was there after it. Against the store alone a process that writes is killed; with
--router it is a whole router that was sent the upload, which is then started again and asked. The
kernel lives on: what a power failure leaves is not seen here.

    python benchmarks/kill_uploads.py [--uploads 1000] [--seed N] [--folder DIR] [--router]

Ends with status 0 where nothing was half there. A router takes a second to start: the default for
it is a kill every 20 uploads, every 3 for the store alone (--uploads-between).
"""

import argparse
import hashlib
import http.client
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from lab import START_SECS, free_ports

from tests.wasm.guests import guest
from tests.wasm.uploader import FIRST_GUESS_SECS, Death, Uploader, kill_uploads, settings

NAME = "plugin"
REQUEST_SECS = 30.0
NO_ENGINE = "http://127.0.0.1:9"  # port 9, discard: nothing listens, and nothing is asked of it
LAUNCH = [
    *(sys.executable, "-m", "sgl_router", "launch"),
    *("--worker-urls", NO_ENGINE, "--host", "127.0.0.1"),
]


class Router:
    """A router whose uploads are kept in a folder, started again whenever it was killed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._upload_secs = FIRST_GUESS_SECS
        self._numbers: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    def __enter__(self) -> "Router":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._kill()

    def upload_until_killed(self, first: int, uploads: int, share: float) -> Death:
        self._start()
        for number in range(first, first + uploads):
            began = time.monotonic()
            self._upload(number)
            self._upload_secs = time.monotonic() - began
        last = first + uploads
        killer = threading.Timer(share * self._upload_secs, self._kill)
        killer.start()
        done = last - 1
        with suppress(OSError, http.client.HTTPException):
            self._upload(last)
            done = last
        killer.join()
        return Death(last, done)

    def found(self) -> int | None:
        self._start()
        status, plugin = self._ask("GET", f"/plugins/{NAME}")
        if status == 404:
            return None
        assert status == 200, f"HTTP {status}: {plugin}"
        number = self._number(plugin["current"])
        if plugin["previous"] is not None:  # after a start it is loaded when it is asked for
            assert self._number(plugin["previous"]) == number - 1
        return number

    def _number(self, version: dict[str, Any]) -> int:
        """Which version it is; raises AssertionError where its parts are not of one."""
        assert version["sha256"] in self._numbers, f"never uploaded: {version}"
        number = self._numbers[version["sha256"]]
        assert version["settings"]["config"] == settings(number)["config"], version
        return number

    def _upload(self, number: int) -> None:
        wasm = guest(sections={"version": str(number).encode()})
        self._numbers[hashlib.sha256(wasm).hexdigest()] = number
        given = quote(orjson.dumps(settings(number)))
        status, answer = self._ask("PUT", f"/plugins/{NAME}?settings={given}", wasm)
        assert status in (200, 201), f"HTTP {status}: {answer}"

    def _ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECS)
        with closing(connection):
            connection.request(method, path, body, {"Content-Type": "application/wasm"})
            response = connection.getresponse()
            return response.status, orjson.loads(response.read())

    def _start(self) -> None:
        """Does nothing where it runs."""
        if self._process is not None:
            return
        (self._port,) = free_ports(1)
        folders = {"STATE_DIRECTORY": "state", "CACHE_DIRECTORY": "cache"}
        with (self._folder / "router.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*LAUNCH, "--port", str(self._port)],
                env=os.environ | {key: str(self._folder / name) for key, name in folders.items()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        deadline = time.monotonic() + START_SECS
        while True:
            with suppress(OSError, http.client.HTTPException):
                if self._ask("GET", "/plugins")[0] == 200:
                    return
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the router does not start:\n{self._last_words()}")
            time.sleep(0.02)

    def _kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _last_words(self) -> str:
        lines = (self._folder / "router.log").read_text("utf-8", "replace").splitlines()
        return "\n".join(lines[-5:])


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is asked"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--uploads", type=int, default=1000, help="to begin")
    parser.add_argument("--uploads-between", type=int, help="kills, on average")
    parser.add_argument("--seed", type=int, help="repeats the choices of a run; else any")
    parser.add_argument("--folder", metavar="DIR", help="make the store there; else in $TMPDIR")
    parser.add_argument("--router", action="store_true", help="kill a whole router")
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    between = options.uploads_between or (20 if options.router else 3)
    if options.uploads < 1 or between < 1:
        raise SystemExit(
            f"{options.uploads} uploads, {between} between kills: at least one of each is needed "
            "(options --uploads and --uploads-between)"
        )
    seed = random.SystemRandom().getrandbits(32) if options.seed is None else options.seed
    with tempfile.TemporaryDirectory(prefix="uploads-", dir=options.folder) as name:
        folder = Path(name)
        with Router(folder) if options.router else Uploader(folder / "store", NAME) as target:
            tally = kill_uploads(target, options.uploads, random.Random(seed), 2 * between)
    print(f"seed {seed}: {tally}")
    for violation in tally.violations:
        print(violation)
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main(arguments()))
