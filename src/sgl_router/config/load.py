"""Reads settings: flags before environment before file before defaults."""

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from sgl_router.config.document import read_yaml
from sgl_router.config.fields import WorkerSettings, check_plugin_config, group_prefill
from sgl_router.config.hints import hint
from sgl_router.config.options import (
    OPTIONS,
    SECRET_NAMES,
    VARIABLE_PREFIX,
    Option,
    Shape,
    variable_of,
)
from sgl_router.config.refused import REFUSED
from sgl_router.config.schema import RouterConfig
from sgl_router.errors import ConfigError

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
"""What Kubernetes sets SGL_ROUTER_PORT to in every pod beside a Service called sgl-router, and
SGL_ROUTER_ADMIN_PORT beside one called sgl-router-admin."""

_SERVICE_VARIABLE = re.compile(
    rf"{VARIABLE_PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
"""What else it sets there (https://kubernetes.io/docs/concepts/services-networking/service/)."""

CONFIG_VARIABLE = variable_of("config")
"""Names the configuration file where --config does not."""

_CREDENTIALS = re.compile(r"//[^/@\s]*@")

_SENTENCES = {
    "extra_forbidden": f"unknown; known are {', '.join(WorkerSettings.model_fields)}",
    "missing": "missing",
    "model_type": "expected a mapping",
    "tuple_type": "expected a list",
}
"""For the kinds of error whose own text speaks of Python."""

_WITHOUT_VALUE = ("extra_forbidden", "missing")

_VARIABLES = frozenset({CONFIG_VARIABLE, *(option.variable for option in OPTIONS.values())})


def load_config(
    flags: Mapping[str, Any], environment: Mapping[str, str], config_file: str | None
) -> RouterConfig:
    """Put the settings together.

    Args:
        flags: values by the options' names, as the parser that `add_flags` made returns them.
        environment: `os.environ`, or a test's.
        config_file: the YAML file that --config names; else the variable may name one.

    Raises ConfigError with everything that is wrong, each with the option and where it stands;
    a key's value is in no message.
    """
    given = _Given()
    if config_file is not None:
        given.take_file(config_file, "option --config")
    elif CONFIG_VARIABLE in environment:
        given.take_file(environment[CONFIG_VARIABLE], f"environment variable {CONFIG_VARIABLE}")
    given.take_environment(environment)
    given.take_flags(flags)
    try:
        config = RouterConfig.model_validate(given.values)
    except ValidationError as error:
        given.problems += _problems(error, given.sources)
    if given.problems:
        raise ConfigError("; ".join(given.problems))
    if isinstance(config.plugin_config, str):
        settings = _plugin_settings(config.plugin_config)
        config = config.model_copy(update={"plugin_config": settings})
    return config


class _Given:
    """What was given, from the source that counts least to the one that counts most.

    Attributes:
        values, sources: by the options' names.
        problems: what is no option, or cannot be read as one.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.sources: dict[str, str] = {}
        self.problems: list[str] = []

    def put(self, option: Option, value: object, source: str) -> None:
        self.values[option.name] = value
        self.sources[option.name] = source

    def take_flags(self, flags: Mapping[str, Any]) -> None:
        for name, value in flags.items():
            option = OPTIONS[name]
            if name == "worker_urls" and not value:
                self.problems.append(
                    f"{option.flag} is given without a URL, as by a shell variable that is not "
                    "set; leave it out for a router that starts without workers"
                )
            self.put(option, _join(option, value), f"option {option.flag}")

    def take_file(self, path: str, given_by: str) -> None:
        for key, value in read_yaml(path, given_by).items():
            source = f"file {path}"
            if (option := OPTIONS.get(key)) is not None:
                self.put(option, value, source)
            elif key in REFUSED:
                self.problems.append(f"{key} is refused: {REFUSED[key]} ({source})")
            else:
                self.problems.append(
                    f"{key!r:.80} is no option{hint(str(key), [*OPTIONS, *REFUSED])} "
                    f"(key in {source})"
                )

    def take_environment(self, environment: Mapping[str, str]) -> None:
        for option in OPTIONS.values():
            text = environment.get(option.variable)
            if text is None or (option.metavar == "PORT" and _SERVICE_LINK.match(text)):
                continue
            source = f"environment variable {option.variable}"
            try:
                self.put(option, _read_variable(option, text), source)
            except json.JSONDecodeError as error:
                self.problems.append(
                    f"{option.name} is not JSON: line {error.lineno}, column {error.colno} "
                    f"({source})"
                )
        for variable, text in environment.items():
            self._check_variable(variable, text)

    def _check_variable(self, variable: str, text: str) -> None:
        """Notes where a variable is named as an option's would be, and is none's."""
        if not variable.startswith(VARIABLE_PREFIX) or variable in _VARIABLES:
            return
        name = variable.removeprefix(VARIABLE_PREFIX).lower()
        if variable == variable_of(name) and name in REFUSED:
            self.problems.append(
                f"{name} is refused: {REFUSED[name]} (environment variable {variable})"
            )
        elif not (
            _SERVICE_VARIABLE.fullmatch(variable)
            or (variable.endswith("_PORT") and _SERVICE_LINK.match(text))
        ):
            self.problems.append(
                f"{name!r:.80} is no option{hint(name, [*OPTIONS, *REFUSED])} "
                f"(environment variable {variable:.100})"
            )


def _read_variable(option: Option, text: str) -> Any:
    if option.shape is Shape.JSON:
        return json.loads(text)
    if option.shape is Shape.PREFILL:
        return group_prefill(text.split())
    return text.split() if option.shape is Shape.WORDS else text


def _join(option: Option, value: Any) -> Any:
    """A flag's words as they stand in a file."""
    return [" ".join(words) for words in value] if option.shape is Shape.PREFILL else value


def _plugin_settings(path: str) -> dict[str, dict[str, Any]]:
    settings = read_yaml(path, "option --plugin-config")
    try:
        check_plugin_config(settings)
    except ValueError as error:
        raise ConfigError(f"{path!r}: {error} (option --plugin-config)") from error
    return settings


def _problems(error: ValidationError, sources: Mapping[str, str]) -> list[str]:
    problems = []
    for item in error.errors(include_url=False):
        if not item["loc"]:
            problems.append(_sentence(item["type"], item["msg"]))
            continue
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"])[1:]
        hidden = item["type"] in _WITHOUT_VALUE or SECRET_NAMES & set(item["loc"])
        value = "" if hidden else f" is {_shown(item['input'])}"
        source = sources.get(str(item["loc"][0]), "default")
        problems.append(f"{path}{value}: {_sentence(item['type'], item['msg'])} ({source})")
    return problems


def _sentence(kind: str, message: str) -> str:
    if kind in _SENTENCES:
        return _SENTENCES[kind]
    message = message.removeprefix("Value error, ")
    return message[:1].lower() + message[1:]


def _shown(value: object) -> str:
    """A value as a message may show it: short, and without what may be a key or a password."""
    if value is None or isinstance(value, str | int | float):
        return f"{_CREDENTIALS.sub('//…@', repr(value)):.80}"
    return "a mapping" if isinstance(value, dict) else f"a {type(value).__name__}"
