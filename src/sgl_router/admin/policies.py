"""`/policy` and `/shadow`: which policy decides, and which one is tried beside it."""

import logging

from fastapi import APIRouter, Request, Response

from sgl_router.admin.control import ControlPlane
from sgl_router.admin.document import CHANGE, described
from sgl_router.admin.plugin_schemas import (
    PluginErrorBody,
    PoliciesInUse,
    PolicyChoice,
    ShadowSpec,
    ShadowState,
)
from sgl_router.admin.replies import json_reply
from sgl_router.admin.schemas import ErrorBody
from sgl_router.admin.security import whom
from sgl_router.core.shadow import ShadowReport
from sgl_router.wasm.status import PolicyInUse

_log = logging.getLogger(__name__)

POLICY_PATH = "/policy"
SHADOW_PATH = "/shadow"


class Policies:
    """`/policy`: the policy of each role."""

    def __init__(self, control: ControlPlane) -> None:
        self._plugins = control.plugins

    def add_routes(self, router: APIRouter) -> None:
        router.get(POLICY_PATH, response_model=PoliciesInUse)(self.get_policies)
        router.put(
            POLICY_PATH,
            response_model=PoliciesInUse,
            responses={
                **described(400, PluginErrorBody),
                **CHANGE,
                **described(404, ErrorBody, "There is no such policy"),
                **described(413, ErrorBody),
            },
        )(self.use_policy)

    async def get_policies(self) -> Response:
        """The policy of each role that is in use."""
        return json_reply(PoliciesInUse(self._plugins.policies()))

    async def use_policy(self, choice: PolicyChoice, request: Request) -> Response:
        """Have a policy decide from the next request on."""
        return _in_use(await self._plugins.use_policy(choice.policy, choice.role), request)


class Shadows:
    """`/shadow`: a plugin that decides beside the policy in use, and is not followed."""

    def __init__(self, control: ControlPlane) -> None:
        self._plugins = control.plugins

    def add_routes(self, router: APIRouter) -> None:
        router.get(SHADOW_PATH, response_model=ShadowState)(self.get_shadow)
        router.put(
            SHADOW_PATH,
            response_model=ShadowState,
            responses={
                **described(400, ErrorBody),
                **CHANGE,
                **described(404, ErrorBody, "There is no such plugin"),
                **described(409, ErrorBody, "It is the policy in use"),
                **described(413, ErrorBody),
            },
        )(self.start_shadow)
        router.delete(SHADOW_PATH, response_model=ShadowState, responses=CHANGE)(self.stop_shadow)
        router.post(
            f"{SHADOW_PATH}/promote",
            response_model=PoliciesInUse,
            responses={
                **described(400, PluginErrorBody, "The plugin is refused"),
                **CHANGE,
                **described(409, ErrorBody, "There is no shadow run"),
            },
        )(self.promote_shadow)

    async def get_shadow(self) -> Response:
        """What the plugin would have done so far."""
        return _shadow(self._plugins.shadow())

    async def start_shadow(self, spec: ShadowSpec, request: Request) -> Response:
        """Try a plugin beside the policy in use; a shadow run that there is ends."""
        report = await self._plugins.start_shadow(spec.plugin, spec.share, spec.role)
        _log.info("plugin %s is tried as a shadow for %s", report.plugin, whom(request))
        return _shadow(report)

    async def stop_shadow(self, request: Request) -> Response:
        """End the shadow run; its last report."""
        report = self._plugins.stop_shadow()
        if report is not None:
            _log.info("the shadow run of plugin %s ends for %s", report.plugin, whom(request))
        return _shadow(report)

    async def promote_shadow(self, request: Request) -> Response:
        """Make the plugin that is tried the policy in use."""
        return _in_use(await self._plugins.promote_shadow(), request)


def _in_use(policies: list[PolicyInUse], request: Request) -> Response:
    shown = ", ".join(f"{in_use.policy} ({in_use.role})" for in_use in policies)
    _log.info("the policy in use is, for %s: %s", whom(request), shown)
    return json_reply(PoliciesInUse(policies))


def _shadow(report: ShadowReport | None) -> Response:
    return json_reply(ShadowState(report))
