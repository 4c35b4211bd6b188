"""The build script, and that what it builds behaves like what is shipped."""

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.policies import PolicyFactory, WasmPolicyConfig, shipped_plugins
from tests.wasm.guests import Bench, request, view
from tests.wasm.table_guests import Hosted, plain_encoder

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "build_wasm_plugins.sh"
TABLE_PLUGIN = "power_of_two_table"
LIMIT_MS = 5_000


def script(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def rebuilt(rust_toolchain: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every example, and the guide's plugin, built from source."""
    folder = tmp_path_factory.mktemp("plugins")
    for arguments in ([], [str(ROOT / "tests" / "guide_plugin")]):
        built = script("build", "--out", str(folder), *arguments)
        assert built.returncode == 0, built.stderr
    return folder


def test_the_golden_decisions_of_what_was_built(rebuilt: Path) -> None:
    golden = ROOT / "tests" / "wasm" / "test_golden_decisions.py"
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(golden), "--plugin-dir", str(rebuilt)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ran.returncode == 0, ran.stdout


@pytest.mark.parametrize("name", sorted(shipped_plugins().keys() - {TABLE_PLUGIN}))
def test_what_is_shipped_decides_like_what_is_built(name: str, rebuilt: Path, bench: Bench) -> None:
    shipped = bench.instance(shipped_plugins()[name].read_bytes(), name="shipped")
    built = bench.instance((rebuilt / f"{name}.wasm").read_bytes(), name="built")
    draw = random.Random(0)
    for _ in range(500):
        payload = orjson.dumps(made_up_input(draw))
        answer = shipped.select_worker(payload, 0, 0, LIMIT_MS)
        assert answer == built.select_worker(payload, 0, 0, LIMIT_MS)


def test_the_shipped_table_plugin_decides_like_what_is_built(rebuilt: Path) -> None:
    shipped = Hosted(shipped_plugins()[TABLE_PLUGIN].read_bytes())
    built = Hosted((rebuilt / f"{TABLE_PLUGIN}.wasm").read_bytes())
    draw = random.Random(0)
    for _ in range(200):
        workers = view(*(draw.random() < 0.8 for _ in range(draw.randrange(12))))
        for worker in workers:
            worker.load = draw.randrange(4)
        asked = request(entropy=draw.getrandbits(53))
        chosen = shipped.decide(plain_encoder(), workers, asked)
        assert chosen == built.decide(plain_encoder(), workers, asked)


def made_up_input(draw: random.Random) -> dict[str, object]:
    urls = [f"http://10.0.0.{i}:30000" for i in range(draw.randrange(12))]
    return {
        "workers": [
            {"url": url, "healthy": draw.random() < 0.8, "load": draw.randrange(4)} for url in urls
        ],
        "request_text": None,
        "config": {"weights": {url: draw.randrange(5) for url in urls if draw.random() < 0.7}},
        "state": {},
        "entropy": draw.getrandbits(53),
    }


def test_the_guides_plugin_with_the_guides_settings(rebuilt: Path) -> None:
    async def decide() -> list[int | None]:
        factory = PolicyFactory()
        await factory.load_wasm_plugin(
            WasmPolicyConfig(
                module_path=str(rebuilt / "my_policy_plugin.wasm"),
                name="my_policy",
                max_execution_time_ms=1000,
                max_memory_bytes=1024 * 1024,
                allowed_syscalls=[],
                config={},
            )
        )
        assert factory.list_wasm_plugins() == ["my_policy"]
        policy = factory.create_by_name("my_policy")
        assert policy is not None
        registry = WorkerRegistry()
        for port in (1, 2, 3):
            registry.add(Worker(f"http://127.0.0.1:{port}", Health.UP))
        request = RequestView("r", "/v1/chat/completions", b'{"messages": []}')
        chosen = [policy.select_worker(registry.view(), request) for _ in range(6)]
        assert factory.unload_wasm_plugin("my_policy") is True
        assert factory.unload_wasm_plugin("my_policy") is False
        assert factory.create_by_name("my_policy") is None
        factory.close()
        return chosen

    chosen = asyncio.run(decide())
    assert sorted(set(chosen), key=str) == [0, 1, 2], "it takes turns, by the state it keeps"
    assert chosen[:3] == chosen[3:]


def test_a_name_that_does_not_exist() -> None:
    refused = script("build", "no_such_plugin")
    assert refused.returncode == 1
    for part in ("no_such_plugin", "least_connections", "power_of_two_table", "weighted_random"):
        assert part in refused.stderr


@pytest.mark.parametrize("arguments", [[], ["bake"], ["build", "--fast"]])
def test_wrong_use(arguments: list[str]) -> None:
    refused = script(*arguments)
    assert refused.returncode == 2
    assert "usage" in refused.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["build", "--help"]])
def test_help(arguments: list[str]) -> None:
    helped = script(*arguments)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "usage" in helped.stdout


def test_without_pytest(tmp_path: Path) -> None:
    """In a copy of the script, whose folder has no environment, with a Python that lacks it."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "examples" / "wasm_plugins" / "one").mkdir(parents=True)
    (tmp_path / "examples" / "wasm_plugins" / "one" / "Cargo.toml").touch()
    copy = tmp_path / "scripts" / SCRIPT.name
    copy.write_bytes(SCRIPT.read_bytes())
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    refused = subprocess.run(
        ["bash", str(copy), "test"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": f"{python.parent}:/usr/bin:/bin"},
    )
    assert refused.returncode == 1
    for part in ("pytest", "pip install", "make test"):
        assert part in refused.stderr
