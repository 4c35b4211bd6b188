"""The options as flags of a command line, and what is said of words that are none."""

import argparse
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from sgl_router.config.hints import hint
from sgl_router.config.options import OPTIONS, Option, Shape, flag_of
from sgl_router.config.refused import REFUSED
from sgl_router.config.schema import SECTIONS

_REFUSED_DEST = "refused_flags"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each option, by topic, and `--config`.

    Flags of other routers that are refused are taken without being shown, with whatever values
    they have; `usage_problem` tells of them.
    """
    file = parser.add_argument_group("Configuration file")
    file.add_argument(
        "--config",
        metavar="FILE",
        help="YAML file with any of these options, as worker_urls: […]; without the flag, the one "
        "that the variable SGL_ROUTER_CONFIG names",
    )
    for section in SECTIONS:
        options = [OPTIONS[name] for name in section.model_fields]
        without_flag = [_without_flag(option) for option in options if option.flag is None]
        group = parser.add_argument_group(section.title, "\n".join(without_flag) or None)
        for option in options:
            if option.flag is not None:
                group.add_argument(option.flag, **_arguments(option))
    for name in REFUSED:
        parser.add_argument(
            flag_of(name),
            dest=_REFUSED_DEST,
            action=_Refused,
            nargs="*",
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )


def launch_flags() -> list[str]:
    """Every flag that `add_flags` adds, taken or refused."""
    taken = [option.flag for option in OPTIONS.values() if option.flag is not None]
    return ["--config", *taken, *map(flag_of, REFUSED)]


def usage_problem(
    options: argparse.Namespace, unknown: Sequence[str], known: Iterable[str]
) -> str | None:
    """What is wrong with a command line, or None.

    Args:
        options, unknown: from `parse_known_args`.
        known: the flags of the command that was called.
    """
    refused: dict[str, list[str]] = {}
    for name in dict.fromkeys(getattr(options, _REFUSED_DEST, ())):
        refused.setdefault(REFUSED[name], []).append(flag_of(name))
    problems = [
        f"{', '.join(flags)} {'is' if len(flags) == 1 else 'are'} refused: {why}"
        for why, flags in refused.items()
    ]
    flags = [word.partition("=")[0] for word in unknown if _is_flag(word)]
    candidates = list(known)
    problems += [f"{flag} is unknown{hint(flag, candidates)}" for flag in flags]
    if not problems and unknown:
        # It may be the rest of a key that was given with a space in it.
        secret = any(OPTIONS[name].secret for name in vars(options) if name in OPTIONS)
        what = "there is a word too many" if secret else f"{unknown[0]!r} is a word too many"
        problems.append(f"{what}: it belongs to no option")
    if not problems:
        return None
    text = problems[0] + " " if len(problems) == 1 else "\n  ".join(["", *problems, ""])
    return f"{text}(--help shows every option)"


def _name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _is_flag(word: str) -> bool:
    return word.startswith("-") and word.strip("-") != "" and not word[1].isdigit()


class _Refused(argparse.Action):
    """Remembers that a refused flag was given, and forgets its values: one may be a password."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        seen = getattr(namespace, self.dest, ())
        setattr(namespace, self.dest, (*seen, _name_of(self.option_strings[0])))


def _without_flag(option: Option) -> str:
    text = f"{option.name} (no flag; key of the file, or {option.variable}): {option.description}"
    return textwrap.fill(text, 78, break_on_hyphens=False)


def _arguments(option: Option) -> dict[str, Any]:
    """What `add_argument` is told; values are checked with those from elsewhere, by the schema."""
    text = option.description
    if option.default_text:
        text += f" (default: {option.default_text})"
    arguments: dict[str, Any] = {"default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if option.shape is Shape.SWITCH:
        return {**arguments, "action": "store_true"}
    if option.shape is Shape.WORDS:
        return {**arguments, "action": "extend", "nargs": "*", "metavar": option.metavar}
    if option.shape is Shape.PREFILL:
        return {**arguments, "action": "append", "nargs": "+", "metavar": ("URL", "PORT")}
    return {**arguments, "metavar": option.metavar}
