"""The shapes of what is sent and answered about plugins, policies and shadow runs."""

from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema

from sgl_router.admin.schemas import ErrorBody, whole
from sgl_router.core.shadow import ShadowReport
from sgl_router.core.worker import Role
from sgl_router.policies.builtin import BUILTIN_POLICIES
from sgl_router.wasm.config import (
    MAX_EXECUTION_TIME_MS,
    MAX_INLINE_BUDGET_MS,
    MAX_MEMORY_BYTES,
    MAX_REQUEST_TEXT_BYTES,
    WasmPolicyConfig,
)
from sgl_router.wasm.grants import GROUPS, WASI_MODULE
from sgl_router.wasm.status import PluginStatus, PolicyInUse

_NOT_SETTINGS = ("name", "module_path")

_MOST = {
    "max_execution_time_ms": MAX_EXECUTION_TIME_MS,
    "max_memory_bytes": MAX_MEMORY_BYTES,
    "max_request_text_bytes": MAX_REQUEST_TEXT_BYTES,
    "inline_budget_ms": MAX_INLINE_BUDGET_MS,
}


def _settings_schema() -> dict[str, Any]:
    """Of `WasmPolicyConfig`, without what an upload says by other means."""
    known = TypeAdapter(WasmPolicyConfig).json_schema()["properties"]
    properties = {
        field.name: known[field.name]
        for field in fields(WasmPolicyConfig)
        if field.name not in _NOT_SETTINGS
    }
    for name, most in _MOST.items():
        properties[name] |= {"minimum": 1, "maximum": most}
    imports = [f"{WASI_MODULE}.{name}" for names in GROUPS.values() for name in names]
    properties["allowed_syscalls"] |= {"items": {"enum": [*GROUPS, *imports]}}
    properties["fallback"] |= {"enum": sorted(policy.name for policy in BUILTIN_POLICIES)}
    properties["sha256"] |= {"pattern": "^[0-9a-f]{64}$"}
    return {
        "type": "object",
        "description": "a setting that is absent keeps its value, or has its default",
        "properties": properties,
        "additionalProperties": False,
    }


SETTINGS_SCHEMA = _settings_schema()
"""Told, but not checked here: who loads a plugin finds every reason to refuse it at once."""

NAME_SCHEMA: dict[str, Any] = {"pattern": "^[A-Za-z0-9_-]{1,64}$"}
"""Of a plugin's name where one is given; told, but not checked here."""


class _Body(BaseModel):
    """What a client sends; a key that is not known is refused, for it may be a slip."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


def whole_numbers(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings, of which those that are whole numbers for the schema are so for Python."""
    return {name: whole(value) if name in _MOST else value for name, value in settings.items()}


_Settings = Annotated[
    dict[str, Any], AfterValidator(whole_numbers), WithJsonSchema(SETTINGS_SCHEMA)
]


class ReloadSpec(_Body):
    """Which settings are to change."""

    settings: _Settings | None = None


_PolicyName = Annotated[str, Field(min_length=1, max_length=256)]


class PolicyChoice(_Body):
    """Which policy is to decide."""

    policy: Annotated[_PolicyName, Field(description="a built-in policy's name, or a plugin's")]
    role: Role | None = Field(
        default=None, description="of the workers; absent or null: all that are in use"
    )


class ShadowSpec(_Body):
    """Which plugin is to be tried, and on how much."""

    plugin: _PolicyName
    share: Annotated[
        float,
        Field(gt=0, le=1, allow_inf_nan=False, description="of all decisions, those it is asked"),
    ]
    role: Role = Field(default="regular", description="of the workers")


@dataclass(frozen=True, slots=True)
class PluginList:
    """All plugins that are loaded."""

    plugins: list[PluginStatus]
    total: int


@dataclass(frozen=True, slots=True)
class PluginUnloaded:
    """A plugin is not there any more."""

    status: Literal["unloaded"]
    name: str


@dataclass(frozen=True, slots=True)
class PoliciesInUse:
    """The policy of each role that is in use."""

    policies: list[PolicyInUse]


@dataclass(frozen=True, slots=True)
class ShadowState:
    """The shadow run, or null where there is none."""

    shadow: ShadowReport | None


class PluginErrorBody(ErrorBody):
    """An error; where a plugin is refused (`plugin_refused`), with every reason found."""

    reasons: list[str] = Field(default=[], description="there where code is plugin_refused")
    codes: list[str] = Field(default=[], description="of each reason, what kind it is")
