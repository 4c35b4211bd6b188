"""The commands `sgl-router plugin …`, and those of a running router, through its control plane."""

import argparse
import shlex
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgl_router.cli.kit import KIT_COMMANDS, warn_of_unbuilt
from sgl_router.cli.kit_help import KIT_EXAMPLES
from sgl_router.cli.kit_runs import RUN_COMMANDS
from sgl_router.cli.kit_runs_help import RUN_EXAMPLES
from sgl_router.cli.plugin_arguments import (
    DEFAULT_SHARE,
    LOAD,
    NAME,
    NOTHING,
    ONE_PLUGIN,
    RELOAD,
    ROUTER,
    SHADOW,
    USE,
    Arguments,
    Command,
)
from sgl_router.cli.plugin_help import EXAMPLES, NOTES, OVERVIEW
from sgl_router.errors import ConfigError

if TYPE_CHECKING:
    from sgl_router.cli.router_client import Answer, Body
    from sgl_router.cli.terminal import Shown


def add_plugin_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plugin` with its commands; `run` of each returns the exit status."""
    of_an_author = {**KIT_COMMANDS, **RUN_COMMANDS}
    plugin = commands.add_parser(
        "plugin",
        help="make plugins; list, load, swap, roll back and shadow those of a running router",
        usage="%(prog)s [-h] COMMAND ...",
        description=OVERVIEW,
        epilog="\n\n".join(
            [
                _summaries("an author's commands:", of_an_author),
                _summaries("a running router's commands:", _COMMANDS),
                NOTES,
            ]
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    # argparse lists all commands under one heading, so that they are listed in the epilog.
    actions = plugin.add_subparsers(
        prog=plugin.prog, required=True, metavar="COMMAND", help=argparse.SUPPRESS
    )
    for name, command in of_an_author.items():
        _add(actions, name, command, {**KIT_EXAMPLES, **RUN_EXAMPLES}[name], {})
    for name, command in _COMMANDS.items():
        _add(actions, name, command, EXAMPLES[name], ROUTER)


def _summaries(heading: str, commands: Mapping[str, Command]) -> str:
    return "\n".join([heading, *(f"  {name:10}{said}" for name, (_, said, _) in commands.items())])


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Command,
    texts: tuple[str, str],
    of_router: Arguments,
) -> None:
    run, _, arguments = command
    description, examples = texts
    parser = actions.add_parser(
        name,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for word, settings in arguments.items():
        parser.add_argument(word, **settings)
    group = parser.add_argument_group("The router")
    for flag, settings in of_router.items():
        group.add_argument(flag, **settings)
    known = [word for word in (*arguments, *of_router) if word.startswith("-")]
    parser.set_defaults(run=run, command=parser, known=known)


# ---- what is run ----


def _list(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import plugin_list  # noqa: PLC0415

    return _call(options, plugin_list, "GET", "/plugins")


def _show(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import plugin_details  # noqa: PLC0415

    return _call(options, plugin_details, "GET", f"/plugins/{options.name}")


def _load(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import policies_in_use, put_result  # noqa: PLC0415
    from sgl_router.cli.router_calls import client_for, module_body, policy_body  # noqa: PLC0415

    name, file, settings = options.name or Path(options.file).stem, options.file, options.settings
    if Path(options.file).is_dir():
        name, file, settings = _of_folder(options)
    if not NAME.fullmatch(name):
        options.command.error(
            f"the file's name makes {name!r:.80} the plugin's; expected 1 to 64 of "
            "a-z A-Z 0-9 _ -: give --name"
        )
    client = client_for(options)
    body = module_body(_read_module(file), settings)
    answer = client.call("PUT", f"/plugins/{name}", body)
    _tell(options, answer, partial(put_result, used_next=options.use))
    if options.use:
        _tell(options, client.call("PUT", "/policy", policy_body(name, None)), policies_in_use)
    return 0


def _of_folder(options: argparse.Namespace) -> tuple[str, str, Mapping[str, Any]]:
    """Of a plugin's folder: name, module and settings, those of the command before its own."""
    from sgl_router.devkit.languages import LANGUAGES  # noqa: PLC0415
    from sgl_router.devkit.project import read_project  # noqa: PLC0415
    from sgl_router.devkit.sources import newest_unbuilt  # noqa: PLC0415

    project = read_project(Path(options.file), LANGUAGES)
    if not project.module.exists():
        raise ConfigError(
            f"{str(project.module)!r} is not there yet: run sgl-router plugin build "
            f"{shlex.quote(options.file)}"
        )
    warn_of_unbuilt(newest_unbuilt(project), options.file)
    settings = {**project.settings, **(options.settings or {})}
    return options.name or project.name, str(project.module), settings


def _reload(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import put_result  # noqa: PLC0415
    from sgl_router.cli.router_calls import json_body  # noqa: PLC0415

    body = None if options.settings is None else json_body({"settings": options.settings})
    return _call(options, put_result, "POST", f"/plugins/{options.name}/reload", body)


def _rollback(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import rolled_back  # noqa: PLC0415

    return _call(options, rolled_back, "POST", f"/plugins/{options.name}/rollback")


def _unload(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import unloaded  # noqa: PLC0415

    return _call(options, unloaded, "DELETE", f"/plugins/{options.name}")


def _use(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import policies_in_use  # noqa: PLC0415
    from sgl_router.cli.router_calls import policy_body  # noqa: PLC0415

    if options.name is not None:
        body = policy_body(options.name, options.role)
        return _call(options, policies_in_use, "PUT", "/policy", body)
    if options.role is not None:
        options.command.error("--role goes with the NAME of the policy to use")
    return _call(options, policies_in_use, "GET", "/policy")


def _shadow(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import shadow_report  # noqa: PLC0415
    from sgl_router.cli.router_calls import json_body  # noqa: PLC0415

    if options.name is not None:
        if options.stop:
            options.command.error("--stop goes without a NAME: one shadow run is under way at most")
        body = {
            "plugin": options.name,
            "share": DEFAULT_SHARE if options.share is None else options.share,
            "role": options.role or "regular",
        }
        return _call(options, shadow_report, "PUT", "/shadow", json_body(body))
    if options.share is not None or options.role is not None:
        options.command.error("--share and --role go with the NAME of the plugin to run in shadow")
    return _call(options, shadow_report, "DELETE" if options.stop else "GET", "/shadow")


def _promote(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import policies_in_use  # noqa: PLC0415

    return _call(options, policies_in_use, "POST", "/shadow/promote")


def _call(
    options: argparse.Namespace,
    shown: "Callable[[Any], list[Shown]]",
    method: str,
    path: str,
    body: "Body | None" = None,
) -> int:
    """One call, and what it answers, on standard output."""
    from sgl_router.cli.router_calls import client_for  # noqa: PLC0415

    _tell(options, client_for(options).call(method, path, body), shown)
    return 0


def _tell(
    options: argparse.Namespace, answer: "Answer", shown: "Callable[[Any], list[Shown]]"
) -> None:
    from sgl_router.cli.escapes import escaped_json  # noqa: PLC0415
    from sgl_router.cli.terminal import show, write  # noqa: PLC0415

    if options.json:
        write(f"{escaped_json(answer.text)}\n")
    else:
        show(shown(answer.value))


def _read_module(path: str) -> bytes:
    """Raises ConfigError where it cannot be read or is larger than any module may be."""
    from sgl_router.wasm.module import HEAD_BYTES, most_bytes  # noqa: PLC0415

    try:
        with Path(path).open("rb") as file:
            head = file.read(HEAD_BYTES)
            most = most_bytes(head)
            module = head + file.read(most + 1 - len(head))
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    if len(module) > most:
        raise ConfigError(
            f"{path!r} has more than {most:,} bytes, the most that such a module may have"
        )
    return module


_COMMANDS: dict[str, Command] = {
    "list": (_list, "list the plugins", NOTHING),
    "show": (_show, "show one plugin and its versions", ONE_PLUGIN),
    "load": (_load, "load a plugin, or replace one", LOAD),
    "reload": (_reload, "load a plugin's file again, or change its settings", RELOAD),
    "rollback": (_rollback, "return to the version before", ONE_PLUGIN),
    "unload": (_unload, "unload a plugin that decides nothing", ONE_PLUGIN),
    "use": (_use, "switch the policy in use, or show it", USE),
    "shadow": (_shadow, "have a plugin decide beside the policy in use", SHADOW),
    "promote": (_promote, "put the plugin that runs in shadow in use", NOTHING),
}
"""A command -> what runs it, what it does in a line, and its arguments."""
