"""A component written in Python, as its authors build it, for the tests of the whole way.

Its state tells what it was given; it is built with componentize-py, which takes seconds, and kept
between runs of the tests by what it is made of.
"""

import hashlib
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.wasm.guests import custom

WIT = Path(__file__).parents[2] / "src/sgl_router/wasm/wit"
MANIFEST = b"""{"version": "1.2.3", "needs": ["request_text", "pending_tokens", "prefix_match",
  "engine_metrics", "worker_info", "outcomes"]}"""
MEMORY_BYTES = 64 * 1024 * 1024
"""That it may have; at the start it takes 13 MB."""

APP = """
import dataclasses
import json

from componentize_py_types import Err
from wit_world.exports.policy import Decision, Input, Outcome

config = {}
outcomes = []


class Policy:  # of which each call gets an instance of its own
    def init(self, text: str) -> None:
        config.update(json.loads(text))
        if "refuse" in config:
            raise Err(config["refuse"])

    def select_worker(self, input: Input) -> Decision:
        text = input.request_text or ""
        if text == "fail":
            raise Err("it cannot decide")
        if text == "trap":
            raise ValueError("a mistake")
        if text == "loop":
            while True:
                pass
        if text == "grow":
            kept = []
            while True:
                kept.append(bytes(1 << 20))
        told = dataclasses.asdict(input)
        del told["state"]
        before = json.loads(input.state)
        state = {"told": told, "config": config, "outcomes": outcomes}
        state["turns"] = before.get("turns", 0) + 1
        healthy = [i for i, worker in enumerate(input.workers) if worker.healthy]
        return Decision(healthy[0] if healthy else None, json.dumps(state))

    def on_request_complete(self, outcome: Outcome) -> None:
        outcomes.append(dataclasses.asdict(outcome))
"""


def builder() -> str | None:
    """componentize-py, or None where it is not installed."""
    beside = Path(sys.executable).parent / "componentize-py"
    return str(beside) if beside.exists() else shutil.which("componentize-py")


def build(command: str, cache: Path) -> bytes:
    """The component, built or found in a folder where such are kept."""
    try:
        made_by = version("componentize-py")
    except PackageNotFoundError:
        made_by = "unknown"
    made_of = "\n".join((APP, made_by, (WIT / "policy.wit").read_text("utf-8")))
    kept = cache / f"{hashlib.sha256(made_of.encode()).hexdigest()}.wasm"
    if not kept.exists():
        with TemporaryDirectory() as folder:
            Path(folder, "app.py").write_text(APP, "utf-8")
            _componentize(command, Path(folder))
            shutil.copyfile(Path(folder, "app.wasm"), kept.with_suffix(".new"))
        kept.with_suffix(".new").replace(kept)
    return kept.read_bytes() + custom("sgl-router.manifest", MANIFEST)


def _componentize(command: str, folder: Path) -> None:
    arguments = ["-d", str(WIT), "-w", "policy-plugin", "componentize", "--stub-wasi"]
    done = subprocess.run(
        [command, *arguments, "-p", str(folder), "app", "-o", str(folder / "app.wasm")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
