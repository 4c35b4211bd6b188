"""Plugins, policies and a shadow run that are nothing but what was asked for them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from sgl_router.core.shadow import ShadowLatency, ShadowReport, ShadowWorker
from sgl_router.core.worker import Role
from sgl_router.errors import PluginRefused, RequestError
from sgl_router.policies.builtin import BUILTIN_POLICIES
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.refusals import Reason
from sgl_router.wasm.status import (
    PluginSource,
    PluginStatus,
    PolicyInUse,
    PutResult,
    QuarantineStatus,
    SelfTest,
    VersionStatus,
)

BUILTIN = "round_robin"
SELF_TEST = SelfTest(selected_worker=1, elapsed_us=12.5, error=None)


def version(wasm: bytes, settings: Mapping[str, Any], number: int = 1) -> VersionStatus:
    return VersionStatus(
        id=f"v{number}",
        sha256=hashlib.sha256(wasm).hexdigest(),
        plugin_version=None,
        abi="json_v1",
        source=PluginSource("upload"),
        loaded_at_ms=1_700_000_000_000,
        settings=dict(settings),
        decisions=3,
        failures={"trap": 1},
        instances=2,
        memory_bytes=65_536,
        state_bytes=2,
    )


def plugin(name: str, wasm: bytes = b"\0asm", **settings: Any) -> PluginStatus:
    """A plugin that is loaded, and in use for nothing."""
    return PluginStatus(
        name=name,
        current=version(wasm, settings),
        previous=None,
        lane="inline",
        waiting=0,
        quarantine=QuarantineStatus("closed", 0, 0, 0, None),
        fallback="power_of_two",
        stale=None,
        last_failure=None,
        swaps=0,
    )


def report(plugin: str, share: float, role: Role) -> ShadowReport:
    return ShadowReport(
        plugin=plugin,
        version="v1",
        role=role,
        share=share,
        since_ms=1_700_000_000_000,
        policy=BUILTIN,
        observed=4,
        decided=2,
        declined=0,
        agreed=1,
        agreement=0.5,
        failures={"timeout": 1},
        skipped=1,
        decision_us=ShadowLatency(1.0, 2.0, 3.0),
        workers=[ShadowWorker("http://one:8000", 4, 2, 1.0, 1.0, 1, 2)],
    )


def _check(name: str, settings: Mapping[str, Any]) -> None:
    """What a plugin's settings are refused for before its module is looked at."""
    unknown = settings.keys() - {each.name for each in fields(WasmPolicyConfig)}
    unknown |= settings.keys() & {"name", "module_path"}
    problems = [Reason("setting_unknown", f"there is no setting {key!r:.80}") for key in unknown]
    if not problems:
        builtin = [policy.name for policy in BUILTIN_POLICIES]
        problems = WasmPolicyConfig("", name, **settings).problems(builtin)
    if problems:
        raise PluginRefused(name, problems)


@dataclass
class FakePlugins:
    """Does as `PluginControl` says, without a plugin: any bytes are taken for one.

    Attributes:
        loaded: what is there, by name.
        in_use: the policy of each role.
        report: the shadow run.
        calls: what was asked for, but for what only reads.
        failure: raised by the next call that changes something.
    """

    loaded: dict[str, PluginStatus] = field(default_factory=dict)
    in_use: dict[Role, str] = field(default_factory=lambda: {"regular": BUILTIN})
    report: ShadowReport | None = None
    calls: list[tuple[object, ...]] = field(default_factory=list)
    failure: Exception | None = None

    def list_plugins(self) -> list[PluginStatus]:
        return list(self.loaded.values())

    def get_plugin(self, name: str) -> PluginStatus | None:
        return self.loaded.get(name)

    async def put_plugin(self, name: str, wasm: bytes, settings: Mapping[str, Any]) -> PutResult:
        self._called("put", name, wasm, dict(settings))
        _check(name, settings)
        old = self.loaded.get(name)
        if old is None:
            self.loaded[name] = plugin(name, wasm, **settings)
            return PutResult("loaded", self.loaded[name], SELF_TEST)
        return self._replace(old, version(wasm, {**old.current.settings, **settings}))

    async def reload_plugin(self, name: str, settings: Mapping[str, Any] | None) -> PutResult:
        self._called("reload", name, settings)
        old = self._find(name)
        _check(name, settings or {})
        merged = {**old.current.settings, **(settings or {})}
        return self._replace(old, replace(old.current, settings=merged))

    async def roll_back_plugin(self, name: str) -> PluginStatus:
        self._called("roll back", name)
        old = self._find(name)
        if old.previous is None:
            raise RequestError(409, "nothing_to_roll_back_to", "there is no version before")
        self.loaded[name] = replace(old, current=old.previous, previous=None)
        return self.loaded[name]

    async def unload_plugin(self, name: str) -> None:
        self._called("unload", name)
        self._find(name)
        if name in self.in_use.values() or (self.report and self.report.plugin == name):
            raise RequestError(409, "plugin_in_use", f"{name} is in use")
        del self.loaded[name]

    def policies(self) -> list[PolicyInUse]:
        return [
            PolicyInUse(role, name, "plugin", "v1", "power_of_two")
            if name in self.loaded
            else PolicyInUse(role, name, "builtin", None, name)
            for role, name in self.in_use.items()
        ]

    async def use_policy(self, name: str, role: Role | None) -> list[PolicyInUse]:
        self._called("use", name, role)
        if name != BUILTIN and name not in self.loaded:
            raise RequestError(404, "policy_not_found", f"there is no policy {name!a:.80}")
        for each in list(self.in_use) if role is None else [role]:
            self.in_use[each] = name
        return self.policies()

    def shadow(self) -> ShadowReport | None:
        return self.report

    async def start_shadow(self, plugin: str, share: float, role: Role) -> ShadowReport:
        self._called("start shadow", plugin, share, role)
        self._find(plugin)
        if self.in_use.get(role) == plugin:
            raise RequestError(409, "plugin_in_use", f"{plugin} is the policy in use")
        self.report = report(plugin, share, role)
        return self.report

    def stop_shadow(self) -> ShadowReport | None:
        self._called("stop shadow")
        last, self.report = self.report, None
        return last

    async def promote_shadow(self) -> list[PolicyInUse]:
        self._called("promote shadow")
        if self.report is None:
            raise RequestError(409, "no_shadow", "there is no shadow run")
        self.in_use[self.report.role] = self.report.plugin
        self.report = None
        return self.policies()

    def _called(self, *what: object) -> None:
        self.calls.append(what)
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure

    def _find(self, name: str) -> PluginStatus:
        if name not in self.loaded:
            raise RequestError(404, "plugin_not_found", f"there is no plugin {name!a:.80}")
        return self.loaded[name]

    def _replace(self, old: PluginStatus, new: VersionStatus) -> PutResult:
        if (new.sha256, new.settings) == (old.current.sha256, old.current.settings):
            return PutResult("unchanged", old, SELF_TEST)
        swapped = replace(new, id=f"v{old.swaps + 2}")
        self.loaded[old.name] = replace(
            old, current=swapped, previous=old.current, swaps=old.swaps + 1
        )
        return PutResult("replaced", self.loaded[old.name], SELF_TEST)
