"""Flags, environment, file: one schema, and errors that say where the value stands."""

import argparse
from pathlib import Path
from typing import Any

import pytest

from sgl_router.config import RouterConfig, add_flags, load_config
from sgl_router.config.load import flag_of
from sgl_router.errors import ConfigError


def parse(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    return vars(parser.parse_args(arguments))


def load(*arguments: str, environment: dict[str, str] | None = None) -> RouterConfig:
    flags = parse(*arguments)
    return load_config(flags, environment or {}, flags.pop("config"))


def test_defaults() -> None:
    config = load()
    assert (config.port, config.worker_urls, config.plugin_config) == (30000, (), None)


def test_every_option_is_a_flag_and_documented() -> None:
    parser = argparse.ArgumentParser()
    add_flags(parser)
    flags = {flag: action.help for action in parser._actions for flag in action.option_strings}
    for name, field in RouterConfig.model_fields.items():
        assert flags[flag_of(name)], f"{name} has a flag with a help text"
        assert field.description


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
        (["--request-timeout-secs", "0"], {}, ["--request-timeout-secs", "0"]),
        (["--request-timeout-secs", "inf"], {}, ["--request-timeout-secs"]),
        (["--max-payload-size", "-1"], {}, ["--max-payload-size", "-1"]),
        (["--log-level", "loud"], {}, ["--log-level", "loud"]),
        (["--health-check-endpoint", "health"], {}, ["--health-check-endpoint"]),
        (["--config", "/nowhere.yaml"], {}, ["--config", "/nowhere.yaml"]),
        (["--plugin-config", "/nowhere.yaml"], {}, ["--plugin-config", "/nowhere.yaml"]),
    ],
)
def test_what_is_wrong_is_named(
    arguments: list[str], environment: dict[str, str], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as refused:
        load(*arguments, environment=environment)
    for part in named:
        assert part in str(refused.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("prot: 1\n", ["prot", "port"]),
        ("- 1\n", ["list", "mapping"]),
        ("port: [1\n", ["YAML"]),
        ("port: high\n", ["port", "high", "router.yaml"]),
        ("worker_urls: http://a\n", ["worker_urls", "http://a"]),
        ("plugin_config: {w: 3}\n", ["plugin_config"]),
    ],
)
def test_files_with_mistakes(tmp_path: Path, text: str, named: list[str]) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as refused:
        load("--config", str(file))
    for part in named:
        assert part in str(refused.value)


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text("# nothing yet\n")
    assert load("--config", str(file)) == RouterConfig()
