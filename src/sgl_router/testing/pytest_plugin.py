"""The pytest plugin: `pytest --policy-plugin FILE` makes a test of each check of a policy plugin.

For each file there is a test for every conformance check and for every golden decision in the
folder `tests` beside it (beside `build`, where the file is there). Nothing of the router is
imported before an option or the fixture asks for it.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sgl_router.testing.golden import GoldenCase
    from sgl_router.testing.host import PluginHost
    from sgl_router.wasm.config import WasmPolicyConfig

_FILES = "--policy-plugin"
_SETTINGS = "--policy-plugin-settings"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("sgl-router", "policy plugins of sgl-router")
    group.addoption(
        _FILES,
        action="append",
        default=[],
        metavar="FILE",
        help="test this compiled policy plugin: whether it keeps the ABI, and its golden decisions "
        "(repeatable)",
    )
    group.addoption(
        _SETTINGS,
        default=None,
        metavar="FILE|JSON",
        help="with what it is loaded, such as max_memory_bytes or config: JSON, or a file with it "
        "(default: settings of the plugin.toml that it belongs to)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """The plugins that are named are collected after what is to be collected anyway."""
    config.args += [str(path) for path in _files(config)]


@pytest.hookimpl(tryfirst=True)
def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A folder on the way to a file that is named is looked into: `build` usually is not."""
    on_the_way = any(path.is_relative_to(collection_path) for path in _files(config))
    return False if on_the_way else None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "PolicyPlugin | None":
    """Takes the files that are named, and no other modules that lie about."""
    if file_path not in _files(parent.config):
        return None
    plugin: PolicyPlugin = PolicyPlugin.from_parent(parent, path=file_path)
    return plugin


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses the fixture is run for each plugin."""
    if "policy_plugin" in metafunc.fixturenames:
        files = _files(metafunc.config)
        if not files:
            raise pytest.UsageError(f"a test uses policy_plugin: give {_FILES} FILE")
        metafunc.parametrize(
            "policy_plugin", files, indirect=True, ids=[path.stem for path in files]
        )


@pytest.fixture
def policy_plugin(request: pytest.FixtureRequest) -> "Iterator[PluginHost]":
    """The plugin of `--policy-plugin`, hosted as by the router; see `sgl_router.testing`."""
    from sgl_router.testing.host import PluginHost  # noqa: PLC0415

    module: Path = request.param
    with PluginHost(module, _settings(request.config, module)) as host:
        yield host


class PolicyPlugin(pytest.File):
    """One plugin, with the tests of it.

    Its host is made by the first test that asks it, and used by all of them.
    """

    _host: "PluginHost | Exception | None" = None

    def collect(self) -> "list[ConformanceItem | GoldenItem]":
        from sgl_router.errors import ConfigError  # noqa: PLC0415
        from sgl_router.testing.conformance import check_names  # noqa: PLC0415
        from sgl_router.testing.golden import load_golden  # noqa: PLC0415
        from sgl_router.testing.settings import golden_folder  # noqa: PLC0415

        try:
            golden = load_golden(golden_folder(self.path))
        except ConfigError as error:
            raise self.CollectError(str(error)) from error
        return [
            *(ConformanceItem.from_parent(self, name=name) for name in check_names()),
            *(
                GoldenItem.from_parent(self, name=f"golden:{one.name}", golden=one)
                for one in golden
            ),
        ]

    @property
    def host(self) -> "PluginHost":
        """Raises PluginRefused, DecisionError, ConfigError or OSError: each time the first one."""
        from sgl_router.errors import RouterError  # noqa: PLC0415

        if self._host is None:
            from sgl_router.testing.host import PluginHost  # noqa: PLC0415

            try:
                self._host = PluginHost(self.path, _settings(self.config, self.path))
            except (RouterError, OSError) as error:
                self._host = error
            else:
                self.config.add_cleanup(self._host.close)
        if isinstance(self._host, Exception):
            raise self._host
        return self._host

    def host_for(self, item: pytest.Item) -> "PluginHost":
        """As `host`; but where the test `loads` tells that there is none, others are skipped."""
        from sgl_router.errors import RouterError  # noqa: PLC0415
        from sgl_router.testing.conformance import LOADS  # noqa: PLC0415

        try:
            return self.host
        except (RouterError, OSError):
            tells = [one for one in self.session.items if one.parent is self and one.name == LOADS]
            if not tells or item in tells:
                raise
        pytest.skip("it does not load")


class _PolicyItem(pytest.Item):
    """A test of a plugin."""

    @property
    def plugin(self) -> PolicyPlugin:
        assert isinstance(self.parent, PolicyPlugin), "made by it"
        return self.parent

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> str:
        """No traceback: what failed is the plugin."""
        from sgl_router.errors import RouterError  # noqa: PLC0415

        if isinstance(excinfo.value, RouterError | OSError | NotAsItShould):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        return self.path, None, f"{self.path.stem}: {self.name}"


class NotAsItShould(Exception):
    """A plugin does not pass."""


class ConformanceItem(_PolicyItem):
    """One conformance check."""

    def runtest(self) -> None:
        from sgl_router.testing.checks import CHECKS  # noqa: PLC0415
        from sgl_router.testing.conformance import run_check  # noqa: PLC0415

        host = self.plugin.host_for(self)
        for check in CHECKS:
            if check.name == self.name:
                result = run_check(check, host)
                _judge(result.outcome, [f"the ABI says: {result.rule}", f"{result.detail}"])


class GoldenItem(_PolicyItem):
    """One golden decision."""

    def __init__(self, *, golden: "GoldenCase", **given: Any) -> None:
        super().__init__(**given)
        self.golden = golden

    def runtest(self) -> None:
        from sgl_router.testing.golden import run_golden  # noqa: PLC0415

        result = run_golden(self.plugin.host_for(self), self.golden)
        _judge(result.outcome, [self.golden.description, *result.problems])


def _judge(outcome: str, lines: Iterable[str]) -> None:
    if outcome == "failed":
        raise NotAsItShould("\n".join(lines))
    if outcome == "skipped":
        pytest.skip(list(lines)[-1])


def _files(config: pytest.Config) -> list[Path]:
    """The plugins that are named, by their absolute paths."""
    start = config.invocation_params.dir
    return [(start / file).resolve() for file in config.getoption(_FILES)]


def _settings(config: pytest.Config, module: Path) -> "WasmPolicyConfig":
    from sgl_router.errors import ConfigError  # noqa: PLC0415
    from sgl_router.testing.settings import settings_for  # noqa: PLC0415

    try:
        return settings_for(module, _given(config.getoption(_SETTINGS)))
    except ConfigError as error:
        raise ConfigError(f"{error} (option {_SETTINGS})") from error


def _given(word: str | None) -> Mapping[str, Any] | None:
    """JSON, or the path of a file with it; a word with @ means something to pytest."""
    from sgl_router.errors import ConfigError  # noqa: PLC0415

    if word is None:
        return None
    import orjson  # noqa: PLC0415

    try:
        given = orjson.loads(word if word.lstrip().startswith("{") else Path(word).read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ConfigError(f"holds a {type(given).__name__}; expected an object")
    return given
