"""The command line of `launch`: what is taken, and what is refused with which exit status."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sgl_router import server
from sgl_router.cli.main import main
from sgl_router.config import RouterConfig
from sgl_router.config.refused import REFUSED

SGLANG_ROUTER = """
    --host 0.0.0.0 --port 30000 --worker-urls http://w:1 http://w:2 --policy cache_aware
    --cache-threshold 0.3 --balance-abs-threshold 64 --balance-rel-threshold 1.5
    --eviction-interval-secs 60 --max-tree-size 67108864 --max-idle-secs 14400
    --max-payload-size 536870912 --worker-startup-timeout-secs 1800
    --worker-startup-check-interval 30 --log-level info --prometheus-port 29000
    --prometheus-host 0.0.0.0 --request-id-headers x-request-id x-trace-id
    --request-timeout-secs 1800 --shutdown-grace-period-secs 180
    --cors-allowed-origins http://localhost:3000 https://example.com
    --max-concurrent-requests -1 --queue-size 100 --queue-timeout-secs 60
    --retry-max-retries 5 --retry-initial-backoff-ms 50 --retry-max-backoff-ms 30000
    --retry-backoff-multiplier 1.5 --retry-jitter-factor 0.2 --disable-retries
    --cb-failure-threshold 10 --cb-success-threshold 3 --cb-timeout-duration-secs 60
    --cb-window-duration-secs 120 --disable-circuit-breaker
    --health-failure-threshold 3 --health-success-threshold 2 --health-check-timeout-secs 5
    --health-check-interval-secs 60 --health-check-endpoint /health --disable-health-check
    --api-key k --tls-cert-path c --tls-key-path k --client-cert-path c --client-key-path k
    --ca-cert-paths a b
"""
"""Every flag that sglang-router has as well, but for prefill and decode, with its own defaults."""

SGLANG_ROUTER_PD = """
    --pd-disaggregation --prefill http://prefill1:8000 9000 --prefill http://prefill2:8000 none
    --prefill http://prefill3:8000 --decode http://decode1:8001 --decode http://decode2:8001
    --policy cache_aware --prefill-policy cache_aware --decode-policy power_of_two
"""
"""From the examples in its --help."""


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[RouterConfig]:
    """The settings with which servers were started; they are not run."""
    started: list[RouterConfig] = []

    def run(config: RouterConfig, read_again: Callable[[], RouterConfig]) -> int:
        assert read_again() == config
        started.append(config)
        return 0

    monkeypatch.setattr(server, "run", run)
    return started


def status_of(*arguments: str) -> object:
    """The exit status of `sgl-router launch`."""
    try:
        return main(["launch", *arguments])
    except SystemExit as leaving:
        return leaving.code


def test_sglang_routers_command_line_is_taken(launched: list[RouterConfig]) -> None:
    assert status_of(*SGLANG_ROUTER.split()) == 0
    (config,) = launched
    given = {f"--{name.replace('_', '-')}" for name in config.model_fields_set}
    assert given == {word for word in SGLANG_ROUTER.split() if word.startswith("--")}
    assert config.worker_urls == ("http://w:1", "http://w:2")
    assert (config.prometheus_port, config.max_concurrent_requests) == (29000, -1)


def test_its_prefill_and_decode_are_taken(launched: list[RouterConfig]) -> None:
    assert status_of(*SGLANG_ROUTER_PD.split()) == 0
    (config,) = launched
    assert [port for _, port in config.prefill] == [9000, None, None]
    assert len(config.decode) == 2


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["--mini-lb"], 2, ["--mini-lb", REFUSED["mini_lb"]]),
        (["--log-dir=/tmp"], 2, ["--log-dir", REFUSED["log_dir"]]),
        (["--selector", "a=b", "c=d", "--enable-igw"], 2, ["--selector", "--enable-igw"]),
        (["--worker-url", "http://a"], 2, ["--worker-url ", "--worker-urls"]),
        (["http://a"], 2, ["http://a"]),
        (["--port"], 2, ["--port"]),
        (["--disable-retries=1"], 2, ["--disable-retries"]),
        (["--queue-size", "-1"], 1, ["--queue-size", "-1"]),
        (["--pd-disaggregation"], 1, ["--prefill", "--decode"]),
    ],
)
def test_what_is_refused_and_how(
    arguments: list[str],
    status: int,
    named: list[str],
    launched: list[RouterConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status_of(*arguments) == status
    assert launched == []
    told = capsys.readouterr().err
    for part in named:
        assert part in told


def test_a_refused_key_and_a_refused_variable(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launched: list[RouterConfig],
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("service_discovery: true\n")
    monkeypatch.setenv("SGL_ROUTER_REDIS_URL", "redis://a")
    assert status_of("--config", str(file)) == 1
    assert launched == []
    told = capsys.readouterr().err
    assert REFUSED["service_discovery"] in told
    assert "SGL_ROUTER_REDIS_URL" in told


def test_the_demo_names_the_nearest_of_its_own_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        main(["demo", "--request", "3"])
    assert leaving.value.code == 2
    told = capsys.readouterr().err
    assert "--requests" in told
    assert "sgl-router demo" in told


def test_help_does_not_wait_for_what_only_a_router_needs() -> None:
    code = (
        "import sys\n"
        "from sgl_router.cli.main import main\n"
        "try: main(['launch', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'fastapi', 'wasmtime', 'uvloop'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.endswith("set()\n")


def test_the_module_named_as_sglang_routers_takes_the_same_flags() -> None:
    texts = {
        subprocess.run(
            [sys.executable, "-m", *command, "--help"], capture_output=True, text=True, check=True
        ).stdout
        for command in (["sgl_router.launch_router"], ["sgl_router", "launch"])
    }
    assert len(texts) == 1
