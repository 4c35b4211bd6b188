"""Whether a plugin keeps the contract: a list of checks, each with what the ABI says.

A check asks a host, so that another host can be tried with them. Each begins with an instance of
its own, and ends with the first thing that is not as the ABI says.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from sgl_router.errors import ConfigError, DecisionError, PluginRefused
from sgl_router.testing.check import Check, Failed, NotForIt
from sgl_router.testing.checks import CHECKS
from sgl_router.testing.host import Host, PluginHost
from sgl_router.testing.report import CheckResult, Report
from sgl_router.testing.settings import settings_for
from sgl_router.wasm.config import WasmPolicyConfig

LOADS = "loads"
_LOADS_RULE = (
    "It is accepted, and starts within its limits of time and memory, without what it is not "
    "granted."
)

HostMaker = Callable[[bytes, WasmPolicyConfig], Host]
"""Makes the host of a module with its settings. Raises PluginRefused or DecisionError."""


def check_names() -> list[str]:
    """The names of all checks, in the order in which they are made."""
    return [LOADS, *(check.name for check in CHECKS)]


def check_conformance(
    module: Path | bytes,
    *,
    settings: Mapping[str, Any] | WasmPolicyConfig | None = None,
    host: HostMaker = PluginHost,
    only: Iterable[str] | None = None,
    on_result: Callable[[CheckResult], None] | None = None,
) -> Report:
    """Make every check on a plugin.

    Args:
        module: its file, or its bytes.
        settings: with what it is loaded; None: what its project says, or the defaults.
        host: what hosts it; this router's own unless another one is to be tried.
        only: names of the checks to make; None: all. `loads` is always made.
        on_result: told of each check as soon as it has been made.

    Raises ConfigError for a setting or a check that there is not, OSError where the file cannot be
    read.
    """
    config = _settings(module, settings)
    wasm = module if isinstance(module, bytes) else module.read_bytes()
    wanted = None if only is None else set(only)
    if wanted is not None and (unknown := sorted(wanted - set(check_names()))):
        raise ConfigError(
            f"there is no check {', '.join(map(ascii, unknown))}; known: {', '.join(check_names())}"
        )
    checks = [check for check in CHECKS if wanted is None or check.name in wanted]
    results: list[CheckResult] = []

    def add(result: CheckResult) -> None:
        results.append(result)
        if on_result is not None:
            on_result(result)

    try:
        hosted = host(wasm, config)
    except (PluginRefused, DecisionError) as error:
        add(CheckResult(LOADS, _LOADS_RULE, "failed", _why(error)))
        for check in checks:
            add(CheckResult(check.name, check.rule, "skipped", "it does not load"))
        return Report(config.name, None, results)
    try:
        add(CheckResult(LOADS, _LOADS_RULE, "passed"))
        for check in checks:
            add(run_check(check, hosted))
        return Report(config.name, hosted.abi, results)
    finally:
        hosted.close()


def run_check(check: Check, host: Host) -> CheckResult:
    """Make one check."""
    try:
        host.start()
        check.run(host)
    except NotForIt as why:
        return CheckResult(check.name, check.rule, "skipped", str(why))
    except Failed as what:
        return CheckResult(check.name, check.rule, "failed", str(what))
    except DecisionError as error:
        return CheckResult(check.name, check.rule, "failed", f"it does not start: {_why(error)}")
    return CheckResult(check.name, check.rule, "passed")


def _settings(
    module: Path | bytes, settings: Mapping[str, Any] | WasmPolicyConfig | None
) -> WasmPolicyConfig:
    if isinstance(settings, WasmPolicyConfig):
        return settings
    if isinstance(module, bytes):
        return settings_for(Path("plugin.wasm"), settings or {})
    return settings_for(module, settings)


def _why(error: PluginRefused | DecisionError) -> str:
    if isinstance(error, PluginRefused):
        return "; ".join(error.reasons)
    return f"{error.kind}: {error.detail}"
