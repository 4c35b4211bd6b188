"""The commands `sgl-router plugin …`: plugins of a running router, through its control plane."""

import argparse
import os
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

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
)
from sgl_router.cli.plugin_help import EXAMPLES, OVERVIEW
from sgl_router.errors import ConfigError

if TYPE_CHECKING:
    from sgl_router.cli.router_client import Answer, Body, RouterClient
    from sgl_router.cli.terminal import Shown


def add_plugin_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `plugin` with its commands; `run` of each returns the exit status."""
    plugin = commands.add_parser(
        "plugin",
        help="list, load, swap, roll back and shadow the plugins of a running router",
        description=OVERVIEW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = plugin.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, (run, summary, arguments) in _COMMANDS.items():
        _add(actions, name, run, summary, arguments)


def _add(
    actions: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    arguments: Arguments,
) -> None:
    description, examples = EXAMPLES[name]
    parser = actions.add_parser(
        name,
        help=summary,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for word, settings in arguments.items():
        parser.add_argument(word, **settings)
    group = parser.add_argument_group("The router")
    for flag, settings in ROUTER.items():
        group.add_argument(flag, **settings)
    known = [word for word in (*arguments, *ROUTER) if word.startswith("-")]
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

    name = options.name or Path(options.file).stem
    if not NAME.fullmatch(name):
        options.command.error(
            f"the file's name makes {name!r:.80} the plugin's; expected 1 to 64 of "
            "a-z A-Z 0-9 _ -: give --name"
        )
    client = _client(options)
    body = _module_body(_read_module(options.file), options.settings)
    answer = client.call("PUT", f"/plugins/{name}", body)
    _tell(options, answer, partial(put_result, used_next=options.use))
    if options.use:
        _tell(options, client.call("PUT", "/policy", _policy_body(name, None)), policies_in_use)
    return 0


def _reload(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import put_result  # noqa: PLC0415

    body = None if options.settings is None else _json_body({"settings": options.settings})
    return _call(options, put_result, "POST", f"/plugins/{options.name}/reload", body)


def _rollback(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import rolled_back  # noqa: PLC0415

    return _call(options, rolled_back, "POST", f"/plugins/{options.name}/rollback")


def _unload(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import unloaded  # noqa: PLC0415

    return _call(options, unloaded, "DELETE", f"/plugins/{options.name}")


def _use(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import policies_in_use  # noqa: PLC0415

    if options.name is not None:
        body = _policy_body(options.name, options.role)
        return _call(options, policies_in_use, "PUT", "/policy", body)
    if options.role is not None:
        options.command.error("--role goes with the NAME of the policy to use")
    return _call(options, policies_in_use, "GET", "/policy")


def _shadow(options: argparse.Namespace) -> int:
    from sgl_router.cli.plugin_tables import shadow_report  # noqa: PLC0415

    if options.name is not None:
        if options.stop:
            options.command.error("--stop goes without a NAME: one shadow run is under way at most")
        body = {
            "plugin": options.name,
            "share": DEFAULT_SHARE if options.share is None else options.share,
            "role": options.role or "regular",
        }
        return _call(options, shadow_report, "PUT", "/shadow", _json_body(body))
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
    _tell(options, _client(options).call(method, path, body), shown)
    return 0


def _client(options: argparse.Namespace) -> "RouterClient":
    from sgl_router.cli.router_client import RouterClient, parse_address, read_key  # noqa: PLC0415

    try:
        address = parse_address(options.router)
    except ValueError as error:
        options.command.error(f"--router is no URL of a router: {error}")
    if options.ca_cert is not None and not address.secure:
        options.command.error("--ca-cert goes with an https URL (option --router)")
    key = read_key(os.environ, options.api_key_file)
    return RouterClient(address, key, options.ca_cert, options.timeout)


def _tell(
    options: argparse.Namespace, answer: "Answer", shown: "Callable[[Any], list[Shown]]"
) -> None:
    from sgl_router.cli.escapes import escaped_json  # noqa: PLC0415
    from sgl_router.cli.terminal import show, write  # noqa: PLC0415

    if options.json:
        write(f"{escaped_json(answer.text)}\n")
    else:
        show(shown(answer.value))


# ---- bodies ----


def _read_module(path: str) -> bytes:
    """Raises ConfigError where it cannot be read or is larger than any module may be."""
    from sgl_router.wasm.module import MAX_MODULE_BYTES  # noqa: PLC0415

    try:
        with Path(path).open("rb") as file:
            module = file.read(MAX_MODULE_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path!r}: {error.strerror}") from error
    if len(module) > MAX_MODULE_BYTES:
        raise ConfigError(
            f"{path!r} has more than {MAX_MODULE_BYTES:,} bytes, the most that a module may have"
        )
    return module


def _module_body(module: bytes, settings: Mapping[str, Any] | None) -> "Body":
    """The module alone, or a form (RFC 7578) with its settings: they do not fit in every URL."""
    from sgl_router.cli.router_client import Body  # noqa: PLC0415

    if settings is None:
        return Body(module, "application/wasm")
    boundary = secrets.token_hex(16)
    form = (
        b'--%b\r\nContent-Disposition: form-data; name="settings"\r\n'
        b"Content-Type: application/json\r\n\r\n%b\r\n"
        b'--%b\r\nContent-Disposition: form-data; name="module"; filename="module.wasm"\r\n'
        b"Content-Type: application/wasm\r\n\r\n%b\r\n--%b--\r\n"
    )
    mark = boundary.encode("ascii")
    content = form % (mark, orjson.dumps(settings), mark, module, mark)
    return Body(content, f"multipart/form-data; boundary={boundary}")


def _policy_body(name: str, role: str | None) -> "Body":
    return _json_body({"policy": name, "role": role})


def _json_body(value: object) -> "Body":
    from sgl_router.cli.router_client import Body  # noqa: PLC0415

    return Body(orjson.dumps(value))


_COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int], str, Arguments]] = {
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
