"""The commands of `sgl-router plugin` that run a plugin on the author's machine."""

import argparse
import signal
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from sgl_router.cli.aside import aside
from sgl_router.cli.kit import FOLDER, build_project, warn_of_unbuilt
from sgl_router.cli.plugin_arguments import RELOAD, ROUTER, SHADOW, Arguments, Command
from sgl_router.errors import ConfigError

if TYPE_CHECKING:
    from sgl_router.cli.dev_shadow import DevShadow
    from sgl_router.cli.terminal import Shown
    from sgl_router.devkit.develop import Round
    from sgl_router.devkit.target import Target
    from sgl_router.devkit.trial import Trial

MAX_INPUT_BYTES = 16 * 1024 * 1024


# ---- arguments ----


def _decisions(word: str) -> int:
    number = int(word) if word.isdecimal() else 0
    if not 1 <= number <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{word!a:.80} is no number from 1 to 10000000")
    return number


def _secs(word: str) -> float:
    try:
        secs = float(word)
    except ValueError:
        secs = 0.0
    if not 0 < secs <= 3_600:
        raise argparse.ArgumentTypeError(f"{word!a:.80} is no time: more than 0, at most 3600")
    return secs


_JSON: Mapping[str, Any] = {"action": "store_true", "help": "show all of it as JSON"}
_TARGET: Arguments = {
    "file": {
        "nargs": "?",
        "default": ".",
        "metavar": "FILE|FOLDER",
        "help": "the compiled module, or a plugin's folder, whose plugin.toml has its settings "
        "(default: this folder)",
    },
    "--settings": {
        **RELOAD["--settings"],
        "help": "settings, such as max_memory_bytes or config: an object in JSON, or a file with "
        "one in JSON or YAML; they go before those of plugin.toml",
    },
    "--json": _JSON,
}
_BENCH: Arguments = {
    **_TARGET,
    "--decisions": {
        "type": _decisions,
        "default": 5_000,
        "metavar": "N",
        "help": "for each number of workers, at most (default: %(default)s)",
    },
    "--seconds": {
        "type": _secs,
        "default": 2.0,
        "metavar": "SECS",
        "help": "for each number of workers, at most (default: %(default)g)",
    },
}
_RUN: Arguments = {
    **_TARGET,
    "--input": {
        "metavar": "FILE|JSON",
        "help": "the input, as in the JSON ABI whatever the plugin's own, or a golden decision, "
        "whose input is taken (default: one is made up, and shown)",
    },
    "--state": {
        "metavar": "FILE|JSON",
        "help": "what the plugin has returned before, an object (default: that of the input)",
    },
}
_DEV: Arguments = {
    **FOLDER,
    **{flag: settings for flag, settings in ROUTER.items() if flag != "--json"},
    "--router": {
        "metavar": "URL",
        "help": "the URL of a running router: each version that passes is loaded there as NAME-dev "
        "and decides in shadow (default: none)",
    },
    "--share": {**SHADOW["--share"], "default": 1.0, "help": "of the requests, in shadow (1)"},
}


# ---- what is run ----


def _target(options: argparse.Namespace) -> "Target":
    from sgl_router.devkit.target import find_target  # noqa: PLC0415

    target = find_target(Path(options.file), options.settings)
    warn_of_unbuilt(target.unbuilt, options.file)
    return target


def _show(options: argparse.Namespace, value: object, parts: "list[Shown]") -> None:
    from sgl_router.cli.escapes import escaped_json  # noqa: PLC0415
    from sgl_router.cli.terminal import show, write  # noqa: PLC0415

    if options.json:
        said = orjson.dumps(value, default=_plain, option=orjson.OPT_INDENT_2)
        write(f"{escaped_json(said.decode('utf-8'))}\n")
    else:
        show(parts)


def _plain(value: object) -> object:
    """What JSON has no words for."""
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"a {type(value).__name__} is not shown")


def _check(options: argparse.Namespace) -> int:
    from sgl_router.cli.kit_tables import checked  # noqa: PLC0415
    from sgl_router.devkit.check import check_target  # noqa: PLC0415

    found = check_target(_target(options))
    _show(options, found, checked(found))
    return 0 if found.accepted else 1


def _test(options: argparse.Namespace) -> int:
    from sgl_router.cli.kit_tables import tried  # noqa: PLC0415

    trial = _tried(_target(options))
    _show(options, _trial_as_json(trial), tried(trial))
    return 0 if trial.passed else 1


def _tried(target: "Target") -> "Trial":
    from sgl_router.cli.progress import progress_bar  # noqa: PLC0415
    from sgl_router.devkit.trial import try_plugin  # noqa: PLC0415

    done = 0
    with progress_bar(f"testing {target.config.name}") as advance:

        def progress(what: str, total: int) -> None:
            nonlocal done
            advance(done / (total + 1), what)
            done += 1

        return aside(lambda: try_plugin(target, progress))


def _trial_as_json(trial: "Trial") -> dict[str, object]:
    return {
        "plugin": trial.report.plugin,
        "abi": trial.report.abi,
        "passed": trial.passed,
        "checks": trial.report.results,
        "golden": [
            {
                "name": one.golden.name,
                "description": one.golden.description,
                "outcome": one.outcome,
                "problems": one.problems,
                "expected": one.golden.expected,
                "answer": one.answer,
            }
            for one in trial.golden
        ],
    }


def _bench(options: argparse.Namespace) -> int:
    from sgl_router.cli.kit_tables import benched  # noqa: PLC0415
    from sgl_router.cli.progress import progress_bar  # noqa: PLC0415
    from sgl_router.devkit.bench import bench_plugin  # noqa: PLC0415

    target = _target(options)
    with progress_bar(f"timing {target.config.name}") as advance:
        bench = aside(
            lambda: bench_plugin(
                target,
                options.decisions,
                options.seconds,
                progress=lambda share: advance(share, f"{share:.0%}"),
            )
        )
    _show(options, bench, benched(bench))
    return 0


def _object(word: str | None, option: str) -> Mapping[str, Any] | None:
    """Of JSON, or the path of a file with it. Raises ConfigError."""
    if word is None:
        return None
    content: bytes | str = word
    if not word.lstrip().startswith("{"):
        try:
            with Path(word).open("rb") as file:
                content = file.read(MAX_INPUT_BYTES + 1)
        except OSError as error:
            raise ConfigError(
                f"cannot read {word!a:.80}: {error.strerror}; expected an object in JSON, or a "
                f"file (option {option})"
            ) from error
        if len(content) > MAX_INPUT_BYTES:
            raise ConfigError(
                f"{word!a:.80} has more than {MAX_INPUT_BYTES:,} bytes (option {option})"
            )
    try:
        value = orjson.loads(content)
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f"it is not JSON: {error} (option {option})") from error
    if not isinstance(value, dict):
        raise ConfigError(f"it is a {type(value).__name__}; expected an object (option {option})")
    return value


def _run(options: argparse.Namespace) -> int:
    from sgl_router.cli.kit_tables import ran  # noqa: PLC0415
    from sgl_router.devkit.single import decide_once  # noqa: PLC0415

    given, state = _object(options.input, "--input"), _object(options.state, "--state")
    target = _target(options)
    run = aside(lambda: decide_once(target, given, state))
    _show(options, run, ran(run))
    return 0 if run.answer.failure is None else 1


# ---- dev ----


def _dev(options: argparse.Namespace) -> int:
    from sgl_router.devkit.develop import rounds, saves  # noqa: PLC0415
    from sgl_router.devkit.trial import try_plugin  # noqa: PLC0415

    folder = Path(options.folder)
    shadow = _dev_shadow(options, folder)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # it tidies up then, too
    try:
        for done in rounds(
            folder, build_project, saves(folder), lambda target: aside(partial(try_plugin, target))
        ):
            _tell_of_round(done, folder, shadow)
    except KeyboardInterrupt:  # how it ends
        return 0
    finally:
        signal.signal(signal.SIGTERM, before)
        if shadow is not None:
            _say(_ended(shadow))
    return 0


def _ended(shadow: "DevShadow") -> list[str]:
    """What came of ending it; it never hides why `dev` itself has ended."""
    from sgl_router.cli.router_client import CallError  # noqa: PLC0415

    try:
        return shadow.end()
    except CallError as error:
        return [f"{shadow.name} may still be on the router:", *str(error).splitlines()]


def _dev_shadow(options: argparse.Namespace, folder: Path) -> "DevShadow | None":
    from sgl_router.devkit.project import read_project  # noqa: PLC0415

    project = read_project(folder)  # one that cannot be read is no folder to watch
    if options.router is None:
        return None
    from sgl_router.cli.dev_shadow import DevShadow  # noqa: PLC0415
    from sgl_router.cli.router_calls import client_for  # noqa: PLC0415

    return DevShadow(client_for(options), project.name, options.share)


def _tell_of_round(done: "Round | None", folder: Path, shadow: "DevShadow | None") -> None:
    """What came of a save, and of the version on the router."""
    from sgl_router.cli.kit_tables import tried  # noqa: PLC0415
    from sgl_router.cli.router_client import CallError  # noqa: PLC0415
    from sgl_router.cli.terminal import show  # noqa: PLC0415
    from sgl_router.wasm.module import read_file  # noqa: PLC0415

    said: list[Shown] = []
    try:
        if done is None:
            said += shadow.agreement() if shadow is not None else []
        else:
            if done.built is not None:
                said.append(f"built {done.built.path}, in {done.built.seconds:.1f} s")
            if done.error is not None:
                said += str(done.error).splitlines()
            if done.trial is not None:
                said += tried(done.trial)
            if done.passed and done.target is not None and shadow is not None:
                wasm = read_file(str(done.target.module))
                said += shadow.put(wasm, done.target.config.settings())
            said.append(f"waiting for changes in {folder} (Ctrl-C ends)")
    except CallError as error:
        said += str(error).splitlines()
    if said:
        show(said)


def _say(sentences: "list[str]") -> None:
    from sgl_router.cli.terminal import show  # noqa: PLC0415

    show(sentences)


RUN_COMMANDS: dict[str, Command] = {
    "check": (_check, "say what a module is, and why a router would refuse it", _TARGET),
    "test": (_test, "test it: conformance to the ABI, and its golden decisions", _TARGET),
    "bench": (_bench, "time its decisions, and tell how much memory they take", _BENCH),
    "run": (_run, "have it decide once, and show all of that", _RUN),
    "dev": (_dev, "build and test it at each save, and try it on a router", _DEV),
}
"""A command -> what runs it, what it does in a line, and its arguments."""
