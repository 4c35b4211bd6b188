"""Flags, environment, file: one schema, and errors that say where the value stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from sgl_router.config import RouterConfig, WorkerSettings
from sgl_router.config.options import OPTIONS
from sgl_router.config.refused import REFUSED
from sgl_router.errors import ConfigError
from tests.config.support import load, parse, parser


def test_defaults() -> None:
    config = load()
    assert (config.port, config.worker_urls, config.plugin_config) == (30000, (), None)


def test_every_option_is_a_flag_and_documented() -> None:
    flags = {flag: action.help for action in parser()._actions for flag in action.option_strings}
    for name, field in RouterConfig.model_fields.items():
        assert field.description
        flag = OPTIONS[name].flag
        assert flags[flag] if flag is not None else name == "workers"
    described = set(re.findall(r"\w+", OPTIONS["workers"].description))
    assert WorkerSettings.model_fields.keys() <= described


def test_help_groups_the_flags_by_topic() -> None:
    text = parser().format_help()
    positions = [text.index(f"\n{option.section}:\n") for option in OPTIONS.values()]
    assert positions == sorted(positions)
    assert len(set(positions)) > 10
    assert "SGL_ROUTER_WORKERS" in text, "what has no flag is shown as well"


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("port: 1\npolicy: random\nhost: 127.0.0.9\nworker_urls: [http://a:1]\n")
    config = load(
        "--config",
        str(file),
        "--port",
        "3",
        environment={"SGL_ROUTER_PORT": "2", "SGL_ROUTER_POLICY": "least_load"},
    )
    assert (config.port, config.policy, config.host) == (3, "least_load", "127.0.0.9")
    assert config.worker_urls == ("http://a:1",)


def test_lists_and_switches() -> None:
    config = load(
        "--worker-urls", "http://a:1", "http://b:2", "--disable-health-check",
        environment={"SGL_ROUTER_REQUEST_ID_HEADERS": "x-a x-b", "SGL_ROUTER_PLUGIN": "p.wasm"},
    )  # fmt: skip
    assert config.worker_urls == ("http://a:1", "http://b:2")
    assert config.disable_health_check is True
    assert config.request_id_headers == ("x-a", "x-b")
    assert config.plugin == ("p.wasm",)


@pytest.mark.parametrize(
    "origin", ["*", "https://chat.example.com", "http://[::1]:3000", "chrome-extension://abc"]
)
def test_origins_as_browsers_send_them(origin: str) -> None:
    assert load("--cors-allowed-origins", origin).cors_allowed_origins == (origin,)


def test_a_list_that_is_given_twice_loses_nothing() -> None:
    config = load("--worker-urls", "http://a:1", "--port", "1", "--worker-urls", "http://b:2")
    assert config.worker_urls == ("http://a:1", "http://b:2")


@pytest.mark.parametrize("word", ["none", "None", "NONE"])
def test_what_may_be_absent_can_be_taken_back(tmp_path: Path, word: str) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("stream_idle_timeout_secs: 7\nadmin_port: 31000\n")
    given = load("--config", str(file))
    assert (given.stream_idle_timeout_secs, given.admin_port) == (7, 31000)
    config = load(
        "--config", str(file), "--stream-idle-timeout-secs", word,
        environment={"SGL_ROUTER_ADMIN_PORT": word},
    )  # fmt: skip
    assert (config.stream_idle_timeout_secs, config.admin_port) == (None, None)


def test_workers_with_more_than_a_url(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(
        "workers:\n- url: http://a:1\n  model_id: m\n  labels: {zone: x}\n- url: https://b\n"
    )
    first, second = load("--config", str(file)).workers
    assert (first.url, first.model_id, first.labels) == ("http://a:1", "m", {"zone": "x"})
    assert (second.worker_type, second.priority, second.cost, second.weight) == (
        "regular", 50, 1.0, 1.0,
    )  # fmt: skip
    (only,) = load(
        "--config", str(file), environment={"SGL_ROUTER_WORKERS": '[{"url": "http://c"}]'}
    ).workers
    assert only == WorkerSettings(url="http://c")


def test_a_service_link_of_kubernetes_is_no_port() -> None:
    link = "tcp://10.0.0.1:30000"
    links = {f"SGL_ROUTER_{name}": link for name in ("PORT", "ADMIN_PORT", "PROMETHEUS_PORT")}
    assert load(environment=links) == RouterConfig()
    assert load("--port", "5", environment=links).port == 5
    with pytest.raises(ConfigError, match="tcp"):
        load(environment={"SGL_ROUTER_QUEUE_SIZE": link})


def test_what_else_kubernetes_sets_for_a_service_is_none_of_ours() -> None:
    link = "tcp://10.0.0.1:30000"
    for service in ("SGL_ROUTER", "SGL_ROUTER_ADMIN", "SGL_ROUTER_V2"):
        variables = {
            f"{service}_SERVICE_HOST": "10.0.0.1",
            f"{service}_SERVICE_PORT": "30000",
            f"{service}_SERVICE_PORT_HTTP": "30000",
            f"{service}_PORT": link,
            f"{service}_PORT_30000_TCP": link,
            f"{service}_PORT_30000_TCP_PROTO": "tcp",
            f"{service}_PORT_30000_TCP_PORT": "30000",
            f"{service}_PORT_30000_TCP_ADDR": "10.0.0.1",
        }
        assert load(environment=variables) == RouterConfig()


def test_a_variable_names_the_file_where_no_flag_does(tmp_path: Path) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("port: 1\n")
    two.write_text("port: 2\n")
    environment = {"SGL_ROUTER_CONFIG": str(one)}
    assert load(environment=environment).port == 1
    assert load("--config", str(two), environment=environment).port == 2


@pytest.mark.parametrize(("word", "level"), [("warning", "warn"), ("critical", "error")])
def test_vllm_routers_levels_are_taken(word: str, level: str) -> None:
    assert load("--log-level", word).log_level == level


def test_a_path_is_taken_without_its_first_slash() -> None:
    assert load("--health-check-endpoint", "health").health_check_endpoint == "/health"


def test_plugin_settings_from_a_file_or_in_place(tmp_path: Path) -> None:
    settings = tmp_path / "plugins.yaml"
    settings.write_text("weighted_random:\n  config: {weights: {}}\n")
    whole = tmp_path / "router.yaml"
    whole.write_text("plugin_config:\n  weighted_random:\n    config: {weights: {}}\n")
    expected: dict[str, dict[str, Any]] = {"weighted_random": {"config": {"weights": {}}}}
    assert load("--plugin-config", str(settings)).plugin_config == expected
    assert load("--config", str(whole)).plugin_config == expected


@pytest.mark.parametrize(
    ("arguments", "environment", "named"),
    [
        (["--port", "many"], {}, ["port", "many", "--port"]),
        (["--port", "70000"], {}, ["70000", "65535", "--port"]),
        ([], {"SGL_ROUTER_PORT": "x"}, ["SGL_ROUTER_PORT", "x"]),
        ([], {"SGL_ROUTER_PORT": ""}, ["SGL_ROUTER_PORT"]),
        (["--request-timeout-secs", "0"], {}, ["--request-timeout-secs", "0"]),
        (["--request-timeout-secs", "inf"], {}, ["--request-timeout-secs"]),
        (["--request-timeout-secs", "none"], {}, ["--request-timeout-secs", "none"]),
        (["--max-payload-size", "-1"], {}, ["--max-payload-size", "-1"]),
        (["--log-level", "loud"], {}, ["--log-level", "loud", "warn"]),
        (["--health-check-endpoint", "http://a/health"], {}, ["--health-check-endpoint"]),
        (["--health-check-endpoint", ""], {}, ["--health-check-endpoint"]),
        (["--worker-urls"], {}, ["--worker-urls", "without a URL"]),
        (["--worker-urls", "--port", "1"], {}, ["--worker-urls", "without a URL"]),
        (["--api-key", "k" * 4097], {}, ["--api-key", "4,096"]),
        ([], {"SGL_ROUTER_WORKER_URL": "http://a"}, ["SGL_ROUTER_WORKER_URL", "worker_urls"]),
        ([], {"SGL_ROUTER_port": "1"}, ["SGL_ROUTER_port", "port"]),
        ([], {"SGL_ROUTER_HTTP_PORT": "80"}, ["SGL_ROUTER_HTTP_PORT"]),
        ([], {"SGL_ROUTER_CONFIG": "/nowhere.yaml"}, ["SGL_ROUTER_CONFIG", "/nowhere.yaml"]),
        (["--engine-metrics-endpoint", "/a b"], {}, ["--engine-metrics-endpoint", "/a b"]),
        (["--max-concurrent-requests", "0"], {}, ["--max-concurrent-requests", "-1", "'0'"]),
        (["--max-concurrent-requests", "-2"], {}, ["--max-concurrent-requests", "-2"]),
        (["--cache-threshold", "1.1"], {}, ["--cache-threshold", "1.1"]),
        (["--balance-rel-threshold", "0.9"], {}, ["--balance-rel-threshold", "0.9"]),
        (["--retry-jitter-factor", "nan"], {}, ["--retry-jitter-factor", "nan"]),
        (["--retry-initial-backoff-ms", "9", "--retry-max-backoff-ms", "8"], {},
         ["--retry-initial-backoff-ms", "--retry-max-backoff-ms", "9", "8"]),
        (["--host", ""], {}, ["--host"]),
        (["--admin-host", ""], {}, ["--admin-host"]),
        (["--worker-urls", "ftp://a"], {}, ["ftp://a", "--worker-urls", "http://HOST:PORT"]),
        (["--cors-allowed-origins", "https://a.b/"], {}, ["--cors-allowed-origins", "https://a.b/"]),
        (["--cors-allowed-origins", "https://A.b"], {}, ["https://A.b", "lower case"]),
        (["--cors-allowed-origins", "https://ä.b"], {}, ["https://ä.b"]),
        (["--cors-allowed-origins", "*", "a.b"], {}, ["cors_allowed_origins[1]", "a.b"]),
        (["--request-id-headers", "x y"], {}, ["--request-id-headers", "x y"]),
        (["--tls-cert-path", "c.pem"], {}, ["--tls-cert-path", "--tls-key-path"]),
        (["--client-key-path", "k.pem"], {}, ["--client-cert-path", "--client-key-path"]),
        ([], {"SGL_ROUTER_WORKERS": "[{"}, ["SGL_ROUTER_WORKERS", "JSON", "column 3"]),
        ([], {"SGL_ROUTER_WORKERS": "{}"}, ["SGL_ROUTER_WORKERS", "list"]),
        ([], {"SGL_ROUTER_WORKERS": "[7]"}, ["workers[0]", "7", "mapping"]),
        ([], {"SGL_ROUTER_WORKERS": "[{}]"}, ["workers[0].url", "missing"]),
        ([], {"SGL_ROUTER_WORKERS": '[{"url": "http://a", "cost": -1}]'},
         ["workers[0].cost", "-1"]),
        ([], {"SGL_ROUTER_WORKERS": '[{"url": "http://a", "model": 1}]'},
         ["workers[0].model", "model_id"]),
        (["--config", "/nowhere.yaml"], {}, ["--config", "/nowhere.yaml"]),
        (["--config", "/"], {}, ["--config", "'/'"]),
        (["--plugin-config", "/nowhere.yaml"], {}, ["--plugin-config", "/nowhere.yaml"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    arguments: list[str], environment: dict[str, str], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(*arguments, environment=environment)
    for part in named:
        assert part in str(refused.value)


def test_everything_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("prot: 1\nlog_dir: /tmp\nqueue_size: many\n")
    with pytest.raises(ConfigError) as refused:
        load(
            "--config", str(file), "--port", "x",
            environment={"SGL_ROUTER_CB_FAILURE_THRESHOLD": "0"},
        )  # fmt: skip
    for part in ("prot", "log_dir", "queue_size", "--port", "SGL_ROUTER_CB_FAILURE_THRESHOLD"):
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 1\n", ["prot", "port"]),
        ("worker-urls: [http://a]\n", ["worker-urls", "worker_urls"]),
        ("log-dir: /tmp\n", ["log-dir", "log_dir", REFUSED["log_dir"]]),
        ("1: 2\n", ["1", "router.yaml"]),
        ("- 1\n", ["list", "mapping"]),
        ("port: [1\n", ["YAML", "line 2", "',' or ']'", "end of the file", "line 1, column 7"]),
        ("\tport: 1\n", ["line 1", "a tab", "cannot start any token"]),
        ("a: b: c\n", ["line 1, column 5", "mapping values are not allowed here"]),
        ("port: \x00\n", ["character 7", "U+0000"]),
        ("port: 1\npolicy\n", ["line 3", "':'", "that begins in line 2, column 1"]),
        ("port: 2024-13-45\n", ["YAML"]),
        ("port: 1\npolicy: random\nport: 2\n", ["line 3", "router.yaml"]),
        ("port: high\n", ["port", "high", "router.yaml"]),
        ("worker_urls: http://a\n", ["worker_urls", "http://a", "list"]),
        ("decode: [http://a, 3]\n", ["decode[1]", "3"]),
        ("plugin_config: {w: 3}\n", ["plugin_config", "'w'"]),
        ("plugin_config: {1: {}}\n", ["plugin_config"]),
        ("plugin_config: {w: {1: 2}}\n", ["plugin_config", "'w'"]),
        ("plugin_config: [w]\n", ["plugin_config", "list"]),
        ("labels: {}\n", ["labels"]),
        ("workers: [{url: http://a, labels: {gpus: 8}}]\n", ["workers[0].labels.gpus", "8"]),
    ],
)
def test_files_with_mistakes(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load("--config", str(file))
    for part in named:
        assert part in str(refused.value)


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \x00", b"a: b: c", b"{{"])
def test_files_that_are_not_yaml(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "router.yaml"
    file.write_bytes(content)
    for option in ("--config", "--plugin-config"):
        with pytest.raises(ConfigError) as refused:
            load(option, str(file))
        assert option in str(refused.value)
        assert str(file) in str(refused.value)


def test_a_plugin_file_with_a_mistake_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plugins.yaml"
    file.write_text("w: 3\n")
    with pytest.raises(ConfigError) as refused:
        load("--plugin-config", str(file))
    for part in ("--plugin-config", str(file), "'w'"):
        assert part in str(refused.value)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("# nothing yet\n")
    assert load("--config", str(file)) == RouterConfig()


def test_flags_that_were_not_given_say_nothing() -> None:
    assert parse() == {"config": None}


def test_the_file_in_the_reference_can_be_used(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "options.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "router.yaml"
    file.write_text(block)
    config = load("--config", str(file))
    assert (len(config.prefill), len(config.workers), config.policy) == (2, 1, "cache_aware")
