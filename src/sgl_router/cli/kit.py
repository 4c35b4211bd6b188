"""`sgl-router plugin new` and `build`: a plugin's folder, and the module that is made of it."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sgl_router.cli.plugin_arguments import ONE_PLUGIN, Arguments, Command

if TYPE_CHECKING:
    from sgl_router.devkit.build import BuiltPlugin
    from sgl_router.devkit.project import PluginProject

LANGUAGE_NAMES = ("rust", "python", "go", "zig", "assemblyscript")
POLICY_NAMES = ("least_connections", "weighted_random", "sticky_session", "lmetric")
"""As the kit has them; named here too, since `--help` does not import it."""


NEW: Arguments = {
    **ONE_PLUGIN,
    "--lang": {
        "choices": LANGUAGE_NAMES,
        "required": True,
        "metavar": "LANG",
        "help": f"the language: {', '.join(LANGUAGE_NAMES)}",
    },
    "--from": {
        "dest": "policy",
        "choices": POLICY_NAMES,
        "default": POLICY_NAMES[0],
        "metavar": "POLICY",
        "help": "the policy to begin from (default: %(default)s)",
    },
    "--dir": {
        "metavar": "DIR",
        "help": "the folder to make; an empty one may be there (default: NAME, in this one)",
    },
}
FOLDER: Arguments = {
    "folder": {
        "nargs": "?",
        "default": ".",
        "metavar": "FOLDER",
        "help": "the plugin's folder, with its plugin.toml (default: this one)",
    }
}


def build_project(project: "PluginProject") -> "BuiltPlugin":
    """Build a plugin; a terminal shows the while what its tools say.

    Raises what `devkit.build.build` raises.
    """
    from sgl_router.devkit.build import build  # noqa: PLC0415
    from sgl_router.devkit.languages import LANGUAGES  # noqa: PLC0415
    from sgl_router.devkit.toolchains import runner  # noqa: PLC0415

    if not sys.stderr.isatty():
        return build(project, runner(), LANGUAGES)

    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(stderr=True, highlight=False)
    doing = f"building {project.name} ({project.language})"
    with console.status(Text(doing)) as status:

        def progress(line: str) -> None:
            shown = Text(f"{doing}: {line}" if line else doing)
            shown.truncate(max(console.width - 4, 1), overflow="ellipsis")
            status.update(shown)

        return build(project, runner(progress), LANGUAGES)


def warn_of_unbuilt(unbuilt: Path | None, folder: str) -> None:
    """Say on standard error that a module is older than a source of its folder, where it is."""
    from sgl_router.cli.escapes import escaped  # noqa: PLC0415

    if unbuilt is not None:
        print(
            escaped(
                f"sgl-router: {unbuilt} was saved after the module was built, which is used as it "
                f"is; to build it: sgl-router plugin build {shlex.quote(folder)}"
            ),
            file=sys.stderr,
        )


def _new(options: argparse.Namespace) -> int:
    from sgl_router.cli.terminal import show  # noqa: PLC0415
    from sgl_router.devkit.languages import LANGUAGES  # noqa: PLC0415
    from sgl_router.devkit.scaffold import new_plugin  # noqa: PLC0415

    (language,) = (one for one in LANGUAGES if one.name == options.lang)
    folder = Path(options.dir or options.name)
    made = new_plugin(folder, options.name, language, options.policy)
    show(
        [
            f"made {folder}, with {len(made)} files; the policy is {folder / language.policy_file}",
            *(
                f"{tool.name} is missing, which building it takes; install it: {tool.install}"
                for tool in language.tools
                if tool.find() is None
            ),
            "next:",
            f"  cd {shlex.quote(str(folder))}",
            "  sgl-router plugin build",
            "  sgl-router plugin test",
            "  sgl-router plugin load .",
        ]
    )
    return 0


def _build(options: argparse.Namespace) -> int:
    from sgl_router.cli.terminal import show  # noqa: PLC0415
    from sgl_router.devkit.languages import LANGUAGES  # noqa: PLC0415
    from sgl_router.devkit.project import read_project  # noqa: PLC0415

    built = build_project(read_project(Path(options.folder), LANGUAGES))
    show([f"built {built.path}: {built.size:,} bytes, in {built.seconds:.1f} s"])
    return 0


KIT_COMMANDS: dict[str, Command] = {
    "new": (_new, "make a folder with a plugin to begin with", NEW),
    "build": (_build, "build its module, and check it", FOLDER),
}
"""The commands, by name."""
