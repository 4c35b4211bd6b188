"""The arguments of `sgl-router plugin …`, and what is refused of each."""

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any, get_args

import orjson

from sgl_router.config.document import read_yaml
from sgl_router.core.worker import Role
from sgl_router.errors import ConfigError

DEFAULT_ROUTER = "http://127.0.0.1:30000"
DEFAULT_SHARE = 0.1
DEFAULT_TIMEOUT_SECS = 180.0  # a large component takes more than a minute to compile

_MAX_TIMEOUT_SECS = 86_400

Arguments = Mapping[str, Mapping[str, Any]]
"""Words and flags -> what `add_argument` is told of each."""

Command = tuple[Callable[[argparse.Namespace], int], str, Arguments]
"""What runs a command and returns the exit status, what it does in a line, and its arguments."""

NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""As `WasmPolicyConfig.name`; so that a name is one segment of a path as it is."""


def _name(word: str) -> str:
    if not NAME.fullmatch(word):
        raise argparse.ArgumentTypeError(f"{word!a:.80} is no name: 1 to 64 of a-z A-Z 0-9 _ -")
    return word


def _settings(word: str) -> Mapping[str, Any]:
    """JSON, or @ and the path of a file with it; no message quotes the file."""
    if word.startswith("@"):
        try:
            settings: Any = read_yaml(word[1:], "option --settings")
            orjson.dumps(settings)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        except orjson.JSONEncodeError as error:
            raise argparse.ArgumentTypeError(f"{word[1:]!r} is not JSON: {error}") from error
    else:
        try:
            settings = orjson.loads(word.encode("utf-8", "surrogateescape"))
        except orjson.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(
                f"it is not JSON: {error}; expected an object, or @FILE"
            ) from error
    if not isinstance(settings, dict):
        raise argparse.ArgumentTypeError(
            f'expected an object, such as {{"max_execution_time_ms": 50}}, or @FILE, not '
            f"{word!a:.80}"
        )
    return settings


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{word!a:.80} is no share: more than 0, at most 1")
    return share


def _seconds(word: str) -> float:
    try:
        seconds = float(word)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= _MAX_TIMEOUT_SECS:
        raise argparse.ArgumentTypeError(
            f"{word!a:.80} is no time: more than 0, at most {_MAX_TIMEOUT_SECS:,} seconds"
        )
    return seconds


_SETTINGS: Mapping[str, Any] = {
    "type": _settings,
    "metavar": "JSON|@FILE",
    "help": "settings, such as max_execution_time_ms or config: an object in JSON, or a file with "
    "one in JSON or YAML; what is left out stays as it is, or has its default",
}
_ROLE: Mapping[str, Any] = {"choices": get_args(Role), "metavar": "ROLE"}

NOTHING: Arguments = {}
ONE_PLUGIN: Arguments = {"name": {"type": _name, "metavar": "NAME", "help": "the plugin's name"}}
RELOAD: Arguments = {**ONE_PLUGIN, "--settings": _SETTINGS}
LOAD: Arguments = {
    "file": {
        "metavar": "FILE",
        "help": "the compiled module, a .wasm file on this machine, or a plugin's folder",
    },
    "--name": {
        "type": _name,
        "metavar": "NAME",
        "help": "the plugin's name (default: the file's, without its ending; a folder's own)",
    },
    "--settings": _SETTINGS,
    "--use": {"action": "store_true", "help": "then switch the policy in use to it"},
}
USE: Arguments = {
    "name": {
        "nargs": "?",
        "type": _name,
        "metavar": "NAME",
        "help": "a plugin, or a built-in policy; without it, what is in use is shown",
    },
    "--role": {
        **_ROLE,
        "help": "the workers it is to decide about: regular, prefill or decode "
        "(default: all that are in use)",
    },
}
SHADOW: Arguments = {
    "name": {
        "nargs": "?",
        "type": _name,
        "metavar": "NAME",
        "help": "the plugin to start with; without it, the run under way is reported",
    },
    "--share": {
        "type": _share,
        "metavar": "N",
        "help": f"share of the decisions it is asked for, up to 1 (default: {DEFAULT_SHARE})",
    },
    "--role": {
        **_ROLE,
        "help": "the workers it is asked about: regular, prefill or decode (default: regular)",
    },
    "--stop": {"action": "store_true", "help": "end the run, and show its last report"},
}
ROUTER: Arguments = {
    "--router": {
        "default": DEFAULT_ROUTER,
        "metavar": "URL",
        "help": "its URL; http or https, its --port or --admin-port (default: %(default)s)",
    },
    "--api-key-file": {
        "metavar": "FILE",
        "help": "file with the key of the router's --admin-api-key, in place of the variable "
        "SGL_ROUTER_ADMIN_API_KEY; there is no flag for the key itself, as everybody on the "
        "machine could read it in the process list",
    },
    "--ca-cert": {
        "metavar": "FILE",
        "help": "PEM file with the authorities that its certificate is checked against, in place "
        "of the system's",
    },
    "--timeout": {
        "type": _seconds,
        "default": DEFAULT_TIMEOUT_SECS,
        "metavar": "SECS",
        "help": "how long to wait for it, at each step (default: %(default)g)",
    },
    "--json": {"action": "store_true", "help": "show its answer's JSON"},
}
"""Of every command: which router, and how it is shown."""
