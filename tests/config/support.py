"""Settings as a user gives them."""

import argparse
from functools import cache
from typing import Any

from sgl_router.config import RouterConfig, add_flags, load_config
from sgl_router.config.flags import launch_flags, usage_problem


@cache
def parser() -> argparse.ArgumentParser:
    """The parser of `launch`, made once: it has hundreds of flags, and keeps nothing."""
    made = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(made)
    return made


def parse(*arguments: str) -> dict[str, Any]:
    """What the flags say, by the options' names, and `config`."""
    return vars(parser().parse_args(arguments))


def complaint(*arguments: str) -> str | None:
    """What is wrong with the flags, or None."""
    options, unknown = parser().parse_known_args(arguments)
    return usage_problem(options, unknown, launch_flags())


def load(*arguments: str, environment: dict[str, str] | None = None) -> RouterConfig:
    """The settings from flags and variables; raises ConfigError as `load_config` does."""
    flags = parse(*arguments)
    return load_config(flags, environment or {}, flags.pop("config"))
