"""The command `sgl-router`.

What a command runs is imported when it runs: the router's packages take three times as long to
import as all that `--help`, `--version` or a misspelt flag need.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from functools import partial

from sgl_router import __version__
from sgl_router.cli.escapes import escaped_lines
from sgl_router.cli.plugin import add_plugin_command
from sgl_router.config import RouterConfig, add_flags, load_config
from sgl_router.config.flags import launch_flags, usage_problem
from sgl_router.errors import RouterError

_LAUNCH = """\
Route requests to LLM inference engines that speak the OpenAI API.

  sgl-router launch --worker-urls http://127.0.0.1:8001 http://127.0.0.1:8002 \\
      --policy least_connections

Prefill and decode on engines of their own, which meet at a bootstrap server:

  sgl-router launch --pd-disaggregation --decode http://10.0.0.2:30000 \\
      --prefill http://10.0.0.1:30000 8998

Each option can also stand in a YAML file (--config FILE, key worker_urls) or in the environment
(SGL_ROUTER_WORKER_URLS); flags win over environment, environment over file. Flags have
sglang-router's names. One of its flags, or of smg's or vllm-router's, that this router does not
have is refused with the reason; none is ignored."""

_DEMO = """\
Three small engines of our own, the router in front of them, and a WebAssembly policy that
chooses between them; half-way the policy is swapped for another, under load."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status."""
    options, unknown = _parser().parse_known_args(arguments)
    if problem := usage_problem(options, unknown, options.known):
        options.command.error(problem)
    try:
        status: int = options.run(options)
    except (RouterError, OSError) as error:
        print(f"sgl-router: {escaped_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="sgl-router",
        description="A router for LLM inference engines whose policies are WebAssembly plugins.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"sgl-router {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    launch = commands.add_parser(
        "launch",
        help="start the router",
        usage="%(prog)s [--config FILE] [--worker-urls URL ...] [OPTION ...]",
        description=_LAUNCH,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_flags(launch)
    launch.set_defaults(run=_launch, command=launch, known=launch_flags())
    demo = commands.add_parser(
        "demo", help="see it work, without an engine", description=_DEMO, allow_abbrev=False
    )
    demo.set_defaults(run=_demo, command=demo, known=_add_demo_flags(demo))
    add_plugin_command(commands)
    return parser


def _add_demo_flags(demo: argparse.ArgumentParser) -> list[str]:
    """Returns the flags."""
    actions = [
        demo.add_argument(
            "--requests",
            type=_positive,
            default=200,
            metavar="N",
            help="streaming requests to send (default: %(default)s)",
        ),
        demo.add_argument(
            "--concurrency",
            type=_positive,
            default=32,
            metavar="N",
            help="requests under way at a time, at most a quarter of all (default: %(default)s)",
        ),
        demo.add_argument(
            "--port",
            type=_port,
            metavar="PORT",
            help="the router's port on 127.0.0.1 (default: any free one; 30000 with --serve)",
        ),
        demo.add_argument(
            "--serve",
            action="store_true",
            help="send nothing; keep running and say where to send to",
        ),
    ]
    return [flag for action in actions for flag in action.option_strings]


def _launch(options: argparse.Namespace) -> int:
    from sgl_router import server  # noqa: PLC0415

    flags = {
        name: value for name, value in vars(options).items() if name in RouterConfig.model_fields
    }
    read = partial(load_config, flags, dict(os.environ), options.config)
    config = read()
    logging.basicConfig(
        level={"warn": "WARNING"}.get(config.log_level, config.log_level.upper()),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    return server.run(config, read)


def _demo(options: argparse.Namespace) -> int:
    from sgl_router.demo.run import DemoOptions, run_demo  # noqa: PLC0415

    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    return run_demo(DemoOptions(options.requests, options.concurrency, options.port, options.serve))


def _port(text: str) -> int:
    number = int(text) if text.isdecimal() else -1
    if not 0 <= number <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port from 0 to 65535")
    return number


def _positive(text: str) -> int:
    number = int(text) if text.isdecimal() else 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number
