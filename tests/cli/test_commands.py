"""The commands, as processes of their own."""

import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from sgl_router import __version__
from sgl_router.config import RouterConfig
from sgl_router.config.options import OPTIONS
from sgl_router.config.refused import REFUSED_POLICIES
from sgl_router.errors import ConfigError
from sgl_router.policies import PolicyFactory, shipped_plugins
from sgl_router.server.plugins import plugins_to_load
from tests.end_to_end.process import launched
from tests.engines.llama import LlamaServer


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sgl_router", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=20) as response:
        body: bytes = response.read()
    return body


def test_version() -> None:
    assert run("--version").stdout == f"sgl-router {__version__}\n"


def test_help_names_every_option() -> None:
    text = run("launch", "--help").stdout
    for option in OPTIONS.values():
        assert re.search(rf"^ *{option.flag or option.name}\b", text, re.MULTILINE)
    assert run().returncode == 2


def test_the_demo_answers_every_request() -> None:
    demo = run("demo", "--requests", "60")
    assert demo.returncode == 0, demo.stderr
    rows = re.findall(r"│ (\w+) +│ (\w+) +│ +(\d+) │ +(\d+) │ +(\d+)% │", demo.stdout)
    assert {row[0] for row in rows} == {"least_connections", "weighted_random"}
    assert {row[1] for row in rows} == {"fast", "medium", "slow"}
    assert sum(int(row[2]) for row in rows) == 60
    assert sum(int(row[3]) for row in rows) == 0


def test_the_demo_can_be_kept_running() -> None:
    command = [sys.executable, "-m", "sgl_router", "demo", "--serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        curl = next(line for line in process.stdout if line.startswith("curl -N"))
        (url,) = re.findall(r"(http://127\.0\.0\.1:\d+)/v1", curl)
        assert orjson.loads(get(f"{url}/workers"))["total"] == 3
        data = re.findall(r"-d '(.*)'", curl)[0].encode()
        request = urllib.request.Request(
            f"{url}/v1/chat/completions", data, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=20) as response:
            assert response.read().endswith(b"data: [DONE]\n\n")
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--policy", "fastest"], ["fastest", "--policy", "round_robin", "least_connections"]),
        (["--policy", "consistent_hash"], ["consistent_hash'", "consistent_hashing", "--policy"]),
        (["--policy", "missing.wasm"], ["missing", "missing.wasm"]),
        (["--worker-urls", "ftp://a"], ["ftp://a", "--worker-urls"]),
        (["--worker-urls", "http://a", "http://a/"], ["twice", "http://a"]),
        (["--plugin", "a/x.wasm", "b/x.wasm"], ["a/x.wasm", "b/x.wasm", "--plugin"]),
        (["--port", "x"], ["--port", "x"]),
        (["--host", "256.1.1.1"], ["256.1.1.1"]),
    ],
)
def test_what_cannot_be_started_says_why(arguments: list[str], named: list[str]) -> None:
    refused = run("launch", "--port", "0", "--host", "127.0.0.1", *arguments)
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    for part in named:
        assert part in refused.stderr


def test_policies_of_other_routers_have_a_nearest() -> None:
    factory = PolicyFactory()
    known = {*factory.list_builtin_policies(), *shipped_plugins()}
    for name, nearest in REFUSED_POLICIES.items():
        assert name not in known
        assert nearest.split()[0].rstrip(";") in known
        with pytest.raises(ConfigError, match=f"{name}'.*{nearest}"):
            plugins_to_load(RouterConfig(policy=name))
        (own,) = plugins_to_load(RouterConfig(policy=name, plugin=(f"a/{name}.wasm",)))
        assert own.name == name
    factory.close()


def test_an_engines_url_with_the_v1_of_clients_is_doubted_at_the_start() -> None:
    with launched("--worker-urls", "http://127.0.0.1:1/v1", "http://127.0.0.1:1") as router:
        assert router.log.count("leave out its /v1") == 1


def test_settings_of_a_plugin_that_is_not_there(tmp_path: Path) -> None:
    settings = tmp_path / "plugins.yaml"
    for text, named in (
        ("wieghted_random: {config: {}}\n", "wieghted_random"),
        ("weighted_random: {max_time: 1}\n", "max_time"),
        ("weighted_random: {config: {weights: {a: -1}}}\n", "weights"),
        ("weighted_random: {max_memory_bytes: 200000000}\n", "104,857,600"),
    ):
        settings.write_text(text)
        refused = run("launch", "--port", "0", "--plugin-config", str(settings))
        assert refused.returncode == 1
        assert named in refused.stderr


def test_launch_serves_and_drains(llama_engines: Sequence[LlamaServer]) -> None:
    urls = [engine.url for engine in llama_engines]
    with launched("--worker-urls", *urls, "--policy", "least_connections") as router:
        listing = orjson.loads(get(f"{router.url}/workers"))
        assert [worker["url"] for worker in listing["workers"]] == urls
        router.process.send_signal(signal.SIGTERM)
        assert router.process.stderr is not None
        router.process.stderr.read()
        assert router.process.wait(20) == 0


def test_the_same_from_a_file(tmp_path: Path, llama_engines: Sequence[LlamaServer]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        f"worker_urls: [{llama_engines[0].url}]\npolicy: weighted_random\n"
        "plugin_config:\n  weighted_random:\n    max_execution_time_ms: 50\n"
    )
    with launched("--config", str(file)) as router:
        assert orjson.loads(get(f"{router.url}/workers"))["total"] == 1
        assert "weighted_random" in router.log
