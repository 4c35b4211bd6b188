"""`sgl-router plugin …` and a router that runs, each a process of its own."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from sgl_router.cli.router_client import KEY_VARIABLE
from sgl_router.policies import shipped_plugins
from tests.end_to_end.process import launched


def run(url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """One command, as a process."""
    command = [sys.executable, "-m", "sgl_router", "plugin", *arguments, "--router", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_plugin_is_loaded_used_shadowed_and_unloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    module = tmp_path / "mine.wasm"
    module.write_bytes(shipped_plugins()["weighted_random"].read_bytes())
    refused = tmp_path / "refused.wasm"
    refused.write_bytes(b"\0asm\1\0\0\0")
    store = str(tmp_path / "store")
    with launched(
        "--worker-urls", "http://127.0.0.1:1", "--policy", "random", "--plugin-store", store
    ) as router:
        for line, status, told in (
            ("list", 0, "no plugin is loaded"),
            ("use", 0, "random"),
            (f"load {refused}", 1, "select_worker"),
            ("list", 0, "no plugin is loaded"),
            (f"load {module}", 0, "loaded: mine"),
            (f"load {module}", 0, "unchanged: mine"),
            ("show mine", 0, "json_v1"),
            ("shadow mine --share 1", 0, "100.0%"),
            ("unload mine", 1, "409 plugin_in_use"),
            ("promote", 0, "mine"),
            ("use", 0, "mine"),
            ('reload mine --settings {"max_execution_time_ms":20}', 0, "replaced: mine"),
            ("show mine", 0, "max_execution_time_ms 20 "),
            ("rollback mine", 0, "rolled back: mine"),
            ("rollback nobody", 1, "404 plugin_not_found"),
            ("use round_robin", 0, "builtin"),
            ("unload mine", 0, "unloaded: mine"),
        ):
            done = run(router.url, *line.split())
            assert done.returncode == status, (line, done.stdout, done.stderr)
            said = " ".join((done.stderr if status else done.stdout).split())
            assert told in said, (line, said)
        listing = run(router.url, "list", "--json")
        assert orjson.loads(listing.stdout) == {"plugins": [], "total": 0}


def test_a_key_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "the-key")
    with launched("--plugin-store", "none") as router:  # which has its key from the same variable
        assert run(router.url, "list").returncode == 0
        monkeypatch.setenv(KEY_VARIABLE, "another")
        done = run(router.url, "load", str(shipped_plugins()["weighted_random"]))
        assert done.returncode == 1
        assert "that was sent" in done.stderr
