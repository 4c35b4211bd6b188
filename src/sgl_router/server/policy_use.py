"""Which policies decide, and which decides beside them without effect."""

import logging
import time

from sgl_router.config import RouterConfig
from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Policy
from sgl_router.core.shadow import ShadowReport
from sgl_router.core.shadow_run import ShadowRun
from sgl_router.core.worker import Role
from sgl_router.errors import ConfigError, RequestError
from sgl_router.policies import PolicyFactory, shipped_plugins
from sgl_router.server.control import needed_roles
from sgl_router.server.plugins import plugin_settings, policy_name
from sgl_router.wasm.policy import Change, WasmPolicy
from sgl_router.wasm.status import PluginSource, PolicyInUse

_log = logging.getLogger(__name__)


class PolicyUse:
    """See the module; one event loop's.

    Args:
        config: the settings.
        factory: the policies.
    """

    def __init__(self, config: RouterConfig, factory: PolicyFactory) -> None:
        self._config = config
        self._factory = factory
        self._roles = sorted(needed_roles(config), reverse=True)
        self._dispatcher: Dispatcher | None = None
        self._shadow: ShadowRun | None = None
        self._candidate: WasmPolicy | None = None  # that decides in shadow

    def named(self, name: str) -> tuple[Policy, Policy]:
        """The policy of that name, and the one that decides where it fails.

        Raises ConfigError where there is none.
        """
        name = policy_name(name)
        policy = self._factory.create_by_name(name)
        if policy is None:
            known = [*self._factory.list_builtin_policies(), *self._factory.list_wasm_plugins()]
            raise ConfigError(
                f"there is no policy {name!r}; there are {', '.join(known)}, the plugins "
                f"{', '.join(shipped_plugins())}, or the path of a .wasm file (option --policy)"
            )
        return policy, self._fallback_of(policy)

    def begin(self, dispatcher: Dispatcher) -> None:
        """The dispatcher, which has the policy of the settings, takes the others too."""
        self._dispatcher = dispatcher
        for role in self._roles:
            self._use(configured_policy(self._config, role), role)

    async def use(self, name: str, role: Role | None = None) -> None:
        """Decide by another policy from the next request on: built in, loaded, or shipped.

        Args:
            name: the policy's.
            role: of the workers that it decides about; None: all.

        Raises ConfigError where there is none of that name, PluginRefused where it is not loaded.
        """
        name = name.removeprefix("wasm:")
        await self.load_shipped(name)
        if self.named(name)[0] is self._candidate:
            self.stop_shadow()
        for each in self._roles if role is None else [role]:
            self._use(name, each)

    async def load_shipped(self, name: str) -> None:
        """Load a plugin that comes with the router, where one of that name is not loaded."""
        if name not in shipped_plugins():
            return
        plugins, path = self._factory.plugins, str(shipped_plugins()[name])
        async with plugins.lock(name):
            if self._factory.create_by_name(name) is None:
                settings = plugin_settings(self._config, name, path)
                version = await plugins.build(settings, None, PluginSource("shipped", path))
                self.loaded(plugins.install(version)[0])

    def loaded(self, policy: WasmPolicy) -> None:
        """A plugin is there that was not there before."""
        policy.on_change.append(self._changed)

    def in_use_as(self, policy: Policy) -> list[str]:
        """The roles of workers that a policy decides about, and `shadow`."""
        if self._dispatcher is None:
            return []
        uses: list[str] = [
            role
            for role, (used, _) in self._dispatcher.policies().items()
            if used is policy and role in self._roles
        ]
        if policy is self._candidate:
            uses.append("shadow")
        return uses

    # ---- for the control plane

    def policies(self) -> list[PolicyInUse]:
        assert self._dispatcher is not None, "started before it is asked"
        used = self._dispatcher.policies()
        return [_shown(role, *used[role]) for role in self._roles]

    async def use_policy(self, name: str, role: Role | None) -> list[PolicyInUse]:
        self._check_role(role)
        try:
            await self.use(name, role)
        except ConfigError as error:
            raise RequestError(404, "policy_not_found", str(error)) from error
        return self.policies()

    def shadow(self) -> ShadowReport | None:
        run = self._shadow
        if run is None:
            return None
        assert self._dispatcher is not None, "there is a run"
        return run.report(self._dispatcher.policies()[run.role][0].name)

    async def start_shadow(self, plugin: str, share: float, role: Role) -> ShadowReport:
        self._check_role(role)
        await self.load_shipped(plugin)
        policy = self._factory.plugins.get(plugin)
        if policy is None:
            raise no_such_plugin(plugin)
        uses = [use for use in self.in_use_as(policy) if use != "shadow"]
        if uses:
            raise RequestError(
                409, "plugin_in_use", f"{plugin} is the policy in use ({', '.join(uses)})"
            )
        self.stop_shadow()
        policy.keep_aside(True)
        self._compare(policy, role, share)
        report = self.shadow()
        assert report is not None, "it has just begun"
        _log.info("plugin %s decides in shadow, on %g of the requests", plugin, share)
        return report

    def stop_shadow(self) -> ShadowReport | None:
        run, candidate, report = self._shadow, self._candidate, self.shadow()
        if run is None or candidate is None:
            return None
        assert self._dispatcher is not None, "there is a run"
        run.over = True
        self._dispatcher.compare(None, run.role)
        self._shadow = self._candidate = None
        candidate.keep_aside(False)
        _log.info("plugin %s decides in shadow no more", candidate.name)
        return report

    async def promote_shadow(self) -> list[PolicyInUse]:
        run = self._shadow
        if run is None:
            raise RequestError(409, "no_shadow", "no plugin decides in shadow (PUT /shadow)")
        return await self.use_policy(run.candidate.name, run.role)

    # ---- within

    def _check_role(self, role: Role | None) -> None:
        if role is not None and role not in self._roles:
            raise RequestError(
                400, "bad_request", f"there are no {role} workers here; {', '.join(self._roles)}"
            )

    def _use(self, name: str, role: Role) -> None:
        assert self._dispatcher is not None, "started before it is changed"
        policy, fallback = self.named(name)
        self._dispatcher.use(policy, fallback, role)
        self._compare_anew(role)
        _log.info("policy %s decides about %s workers", policy.name, role)

    def _fallback_of(self, policy: Policy) -> Policy:
        fallback = self._factory.create_by_name(policy.fallback or "power_of_two")
        assert fallback is not None, "checked when the plugin was loaded"
        return fallback

    def _compare_anew(self, role: Role) -> None:
        """What was counted is of the policy in use before."""
        run = self._shadow
        if run is not None and run.role == role and self._candidate is not None:
            self._compare(self._candidate, role, run.share)

    def _compare(self, policy: WasmPolicy, role: Role, share: float) -> None:
        assert self._dispatcher is not None, "started before it is changed"
        if self._shadow is not None:
            self._shadow.over = True
        self._candidate = policy
        self._shadow = ShadowRun(policy, role, share, now_ms())
        self._dispatcher.compare(self._shadow, role)

    def _changed(self, policy: WasmPolicy, _change: Change) -> None:
        """Another version decides, which may need other things, and another fallback."""
        if self._dispatcher is None:
            return
        for role, (used, _) in self._dispatcher.policies().items():
            if used is policy:
                self._dispatcher.use(policy, self._fallback_of(policy), role)
                self._compare_anew(role)
        run = self._shadow
        if run is not None and policy is self._candidate:  # what was counted is another version's
            self._compare(policy, run.role, run.share)


def configured_policy(config: RouterConfig, role: Role) -> str:
    """The name of the policy that the settings give a role."""
    named = {"prefill": config.prefill_policy, "decode": config.decode_policy}
    return named.get(role) or config.policy


def no_such_plugin(name: str) -> RequestError:
    """The answer where a plugin is not loaded."""
    return RequestError(404, "plugin_not_found", f"no plugin {name!a:.200} is loaded")


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


def _shown(role: Role, policy: Policy, fallback: Policy) -> PolicyInUse:
    return PolicyInUse(
        role,
        policy.name,
        "plugin" if isinstance(policy, WasmPolicy) else "builtin",
        policy.version,
        fallback.name,
    )
