"""Reads settings: flags before environment before file before defaults."""

import argparse
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from sgl_router.config.schema import RouterConfig
from sgl_router.errors import ConfigError

ENVIRONMENT_PREFIX = "SGL_ROUTER_"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option of the schema, and `--config`."""
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file with any of these options, as worker_urls: […]"
    )
    for name, field in RouterConfig.model_fields.items():
        kwargs: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(field)}
        if field.annotation is bool:
            kwargs["action"] = "store_true"
        elif _is_list(field):
            kwargs.update(nargs="*", metavar=_metavar(name))
        else:
            kwargs["metavar"] = _metavar(name)
        parser.add_argument(flag_of(name), **kwargs)


def load_config(
    flags: Mapping[str, Any], environment: Mapping[str, str], config_file: str | None
) -> RouterConfig:
    """Put the settings together. Raises ConfigError, naming the option and where it stands."""
    values = _read_yaml(config_file, "--config") if config_file is not None else {}
    sources = dict.fromkeys(values, f"file {config_file}")
    for name, field in RouterConfig.model_fields.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if variable in environment:
            text = environment[variable]
            values[name] = text.split() if _is_list(field) else text
            sources[name] = f"environment variable {variable}"
        if name in flags:
            values[name] = flags[name]
            sources[name] = f"option {flag_of(name)}"
    try:
        config = RouterConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError("; ".join(_problems(error, sources))) from error
    if isinstance(config.plugin_config, str):
        settings = _read_yaml(config.plugin_config, "--plugin-config")
        config = config.model_copy(update={"plugin_config": _plugin_settings(settings)})
    return config


def flag_of(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def _metavar(name: str) -> str:
    return name.rsplit("_", 1)[-1].upper().removesuffix("S")


def _help(field: FieldInfo) -> str:
    default = field.default
    if default in (None, (), False):
        return (field.description or "").replace("%", "%%")
    shown = " ".join(default) if isinstance(default, tuple) else default
    return f"{field.description} (default: {shown})".replace("%", "%%")


def _is_list(field: FieldInfo) -> bool:
    annotation = field.annotation
    if get_origin(annotation) in (Union, types.UnionType):
        return any(get_origin(member) is tuple for member in get_args(annotation))
    return get_origin(annotation) is tuple


def _read_yaml(path: str, option: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path!r}: {error} (option {option})") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path!r} is not YAML: {error} (option {option})") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(
            f"{path!r} holds a {type(data).__name__}; expected a mapping (option {option})"
        )
    return data


def _plugin_settings(settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    for name, value in settings.items():
        if not isinstance(value, dict):
            raise ConfigError(
                f"plugin_config of {name!r} is {value!r:.80}; expected a mapping of settings such "
                "as config or max_execution_time_ms (option --plugin-config)"
            )
    return settings


def _problems(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        name = str(item["loc"][0]) if item["loc"] else "configuration"
        if item["type"] == "extra_forbidden":
            known = ", ".join(RouterConfig.model_fields)
            problems.append(f"unknown key {name!r} ({sources.get(name, 'file')}); known: {known}")
        else:
            problems.append(
                f"{name} is {item['input']!r:.80}: {item['msg'].lower()} "
                f"({sources.get(name, 'default')})"
            )
    return problems
