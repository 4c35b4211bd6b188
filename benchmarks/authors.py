"""From an empty folder to decisions on live traffic, in each language: how long does it take?

Hard about it: the first time is what a newcomer waits for, and it is mostly the language's own tool
that is waited for, with whatever it keeps from one build to the next. So each language gets an
empty folder, and with its router an empty cache of compiled modules; what the tools keep in the
user's own folders (Go's build cache, npm's) stays as it is on the machine, unless `--cold` sends
them to empty ones. Every step is the command that a user types.

    python benchmarks/authors.py [--languages rust go …] [--cold] [--requests 200]

Ends with status 1 where a step fails or the plugin did not decide every request.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from lab import Lab, free_ports, machine
from workload import PATH, chat_bodies

LANGUAGES = ("rust", "python", "go", "zig", "assemblyscript")
STEPS = ("new", "build", "test", "bench", "load")
NAME = "my_policy"
STEP_SECS = 600.0
CONNECTIONS = 16


class StepFailed(Exception):
    """A step did not end well; the text says which, and what it said."""


def step(folder: Path, environment: Mapping[str, str], *words: str) -> float:
    """Run `sgl-router plugin …` in a folder; returns the seconds that it took."""
    command = [sys.executable, "-m", "sgl_router", "plugin", *words]
    began = time.monotonic()
    ran = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=STEP_SECS,
    )
    if ran.returncode != 0:
        raise StepFailed(f"{' '.join(words)}: status {ran.returncode}\n{ran.stdout}{ran.stderr}")
    return time.monotonic() - began


def ask(port: int, path: str, body: bytes | None = None) -> bytes:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, headers)
    with urllib.request.urlopen(request, timeout=STEP_SECS) as answer:
        content: bytes = answer.read()
    return content


def author(language: str, lab: Lab, folder: Path, options: argparse.Namespace) -> dict[str, str]:
    """All steps in one language: a row of the table. Raises StepFailed."""
    folder.mkdir()
    cold = ("GOCACHE", "CARGO_HOME", "npm_config_cache", "ZIG_GLOBAL_CACHE_DIR")
    environment = {"XDG_CACHE_HOME": str(folder / "cache")}
    if options.cold:
        environment |= {name: str(folder / name) for name in cold}
    (port,) = free_ports(1)
    demo = [sys.executable, "-m", "sgl_router", "demo", "--serve", "--port", str(port)]
    router = lab.start(demo, port)
    router.wait_until_serving()
    plugin = folder / NAME
    took = [
        step(folder, environment, "new", NAME, "--lang", language),
        step(plugin, environment, "build"),
        step(plugin, environment, "test"),
        step(plugin, environment, "bench"),
        step(plugin, environment, "load", ".", "--use", "--router", f"http://127.0.0.1:{port}"),
    ]
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        list(pool.map(partial(ask, port, PATH), chat_bodies(options.requests, 1000)))
    current = json.loads(ask(port, f"/plugins/{NAME}"))["current"]
    router.stop()
    if current["decisions"] != options.requests or current["failures"]:
        raise StepFailed(f"{current['decisions']} decisions, failures: {current['failures']}")
    module = plugin / "build" / f"{NAME}.wasm"
    return {
        "language": language,
        **{f"{name}, s": f"{seconds:.1f}" for name, seconds in zip(STEPS, took, strict=True)},
        "in all, s": f"{sum(took):.1f}",
        "decisions": str(current["decisions"]),
        "kB": f"{module.stat().st_size / 1000:,.0f}",
    }


def arguments() -> argparse.Namespace:
    assert __doc__ is not None, "it begins with what is asked"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES)
    parser.add_argument("--cold", action="store_true", help="the tools' caches are empty, too")
    parser.add_argument("--requests", type=int, default=200)
    return parser.parse_args()


def main(options: argparse.Namespace) -> int:
    print("; ".join(f"{name} {value}" for name, value in machine().items()) + "\n")
    failed = False
    with Lab() as lab:
        for number, language in enumerate(options.languages):
            try:
                row = author(language, lab, lab.folder / language, options)
            except StepFailed as error:
                print(f"{language}: {error}")
                failed = True
                continue
            if number == 0:
                print("| " + " | ".join(row) + " |\n|" + "---|" * len(row))
            print("| " + " | ".join(row.values()) + " |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(arguments()))
