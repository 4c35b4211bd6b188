"""What the control plane can do to plugins, to the policies in use and to a shadow run."""

from collections.abc import Mapping
from typing import Any, Protocol

from sgl_router.core.shadow import ShadowReport
from sgl_router.core.worker import Role
from sgl_router.wasm.status import PluginStatus, PolicyInUse, PutResult


class PluginControl(Protocol):
    """The plugins that are loaded, and what they are used for.

    Each of its `async` methods may be cancelled, when the client that asked has gone.
    """

    def list_plugins(self) -> list[PluginStatus]:
        """All that are loaded."""

    def get_plugin(self, name: str) -> PluginStatus | None:
        """One that is loaded, or None."""

    async def put_plugin(self, name: str, wasm: bytes, settings: Mapping[str, Any]) -> PutResult:
        """Load a plugin, or have another version of it take over.

        Args:
            name: the plugin's, whatever the client calls it.
            wasm: the module, of which nothing is known but that it is there and not too large.
            settings: those that are absent keep their values, or have their defaults.

        Raises PluginRefused; what served before goes on serving.
        """

    async def reload_plugin(self, name: str, settings: Mapping[str, Any] | None) -> PutResult:
        """Read the plugin's file (or the module that is kept) again and apply settings.

        Raises PluginRefused, or RequestError: 404 where it is not loaded.
        """

    async def roll_back_plugin(self, name: str) -> PluginStatus:
        """Return to the version before.

        Raises RequestError: 404 where it is not loaded, 409 where there is no such version.
        """

    async def unload_plugin(self, name: str) -> None:
        """Forget the plugin.

        Raises RequestError: 404 where it is not loaded, 409 while it is in use.
        """

    def policies(self) -> list[PolicyInUse]:
        """The policy of each role that is in use."""

    async def use_policy(self, name: str, role: Role | None) -> list[PolicyInUse]:
        """Have this policy decide from the next request on; what `policies` then says.

        Args:
            name: a built-in policy's or a loaded plugin's.
            role: of the workers that it places requests on; None: all that are in use.

        Raises PluginRefused, or RequestError: 404 where there is no such policy.
        """

    def shadow(self) -> ShadowReport | None:
        """What the candidate would have done so far, or None where none is being tried."""

    async def start_shadow(self, plugin: str, share: float, role: Role) -> ShadowReport:
        """Have a plugin decide beside the policy in use, and follow none of its decisions.

        Args:
            plugin: the name of one that is loaded.
            share: of all decisions, those that it is asked for; above 0, at most 1.
            role: of the workers.

        Raises RequestError: 404 where it is not loaded, 409 where it is the policy in use.
        """

    def stop_shadow(self) -> ShadowReport | None:
        """End the shadow run; its last report, or None where there was none."""

    async def promote_shadow(self) -> list[PolicyInUse]:
        """Make the candidate the policy in use, which ends the shadow run.

        Raises RequestError: 409 where none is being tried.
        """
