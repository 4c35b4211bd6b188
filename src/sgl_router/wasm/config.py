"""What a plugin is loaded with, and the limits of that."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

import orjson

from sgl_router.wasm.grants import grant_problems
from sgl_router.wasm.refusals import Reason

MAX_EXECUTION_TIME_MS = 30_000
MAX_MEMORY_BYTES = 100 * 1024 * 1024
MAX_CONFIG_BYTES = 64 * 1024
MAX_REQUEST_TEXT_BYTES = 8 * 1024 * 1024
MAX_INLINE_BUDGET_MS = 100

Isolation = Literal["shared", "per_call"]
Lane = Literal["auto", "inline", "offload"]

RESERVED_NAMES = frozenset({"default", "none", "system", "wasm"})
GIVEN_BY = (
    "(key config of --plugin-config, of plugin load --settings or of WasmPolicyConfig; "
    "[settings.config] of plugin.toml)"
)
"""Where the configuration of a plugin stands; ends what is said of it."""

_NAMED = "a plugin that is given by its path is named by its file, else by whoever loads it"
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class WasmPolicyConfig:
    """One plugin: its module, its name and what it may use.

    Attributes:
        module_path: the compiled module, a `.wasm` file.
        name: 1 to 64 of `a-z A-Z 0-9 _ -`.
        max_execution_time_ms: for one decision, and for the module's start; at most 30,000.
        max_memory_bytes: memory and table together; at most 100 MiB.
        allowed_syscalls: WASI imports by full name (`wasi_snapshot_preview1.random_get`) or by
            group (`wasi:clocks`, `wasi:random`, `wasi:stdio`, `wasi:environ`, `wasi:filesystem`).
        config: handed to the plugin with every decision, as JSON.
        fallback: the built-in policy that decides where the plugin fails.
        max_request_text_bytes: the request's text is cut to this for the plugin (UTF-8 bytes).
        inline_budget_ms: what a decision may take on the event loop; one that takes longer is taken
            again on a thread of the plugin's own, with all of `max_execution_time_ms`.
        isolation: `shared`, one instance decides after the other; `per_call`, each decision has an
            instance of its own, so that the guest's memory carries nothing over.
        sha256: what the module must be, hexadecimal; None: any.
        lane: where decisions are taken: `inline`, on the event loop, as long as they stay within
            `inline_budget_ms`; `offload`, on a thread of the plugin's own; `auto`, that of a core
            module on the event loop, of a component on its own thread.
    """

    module_path: str
    name: str
    max_execution_time_ms: int = 100
    max_memory_bytes: int = 1024 * 1024
    allowed_syscalls: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    fallback: str = "power_of_two"
    max_request_text_bytes: int = 32 * 1024
    inline_budget_ms: int = 5
    isolation: Isolation = "shared"
    sha256: str | None = None
    lane: Lane = "auto"

    def settings(self) -> dict[str, Any]:
        """All of it but the name and the path: what may be said of a plugin that was sent."""
        names = [field.name for field in fields(self) if field.name not in ("name", "module_path")]
        return {name: getattr(self, name) for name in names}

    def problems(self, builtin_names: Collection[str]) -> list[Reason]:
        """Everything that is wrong with these settings."""
        found = name_problems(self.name, builtin_names)
        found += _range_problems(
            "max_execution_time_ms", self.max_execution_time_ms, MAX_EXECUTION_TIME_MS, "ms"
        )
        found += _range_problems(
            "max_memory_bytes", self.max_memory_bytes, MAX_MEMORY_BYTES, "bytes"
        )
        found += _range_problems(
            "max_request_text_bytes", self.max_request_text_bytes, MAX_REQUEST_TEXT_BYTES, "bytes"
        )
        found += _range_problems(
            "inline_budget_ms", self.inline_budget_ms, MAX_INLINE_BUDGET_MS, "ms"
        )
        if self.isolation not in get_args(Isolation):
            text = f"isolation is {self.isolation!r:.80}; expected shared or per_call"
            found.append(Reason("choice_unknown", text))
        if self.lane not in get_args(Lane):
            text = f"lane is {self.lane!r:.80}; expected auto, inline or offload"
            found.append(Reason("choice_unknown", text))
        if self.sha256 is not None and not is_digest(self.sha256):
            text = f"sha256 is {self.sha256!r:.80}; expected 64 hexadecimal digits"
            found.append(Reason("sha256_invalid", text))
        found += grant_problems(self.allowed_syscalls)
        found += _config_problems(self.config)
        if not isinstance(self.fallback, str) or self.fallback not in builtin_names:
            text = f"fallback is {self.fallback!r:.80}; expected a built-in policy: "
            found.append(Reason("fallback_unknown", text + ", ".join(sorted(builtin_names))))
        return found


def is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def name_problems(name: object, builtin_names: Collection[str]) -> list[Reason]:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        text = f"name is {name!r:.80}; expected 1 to 64 of a-z A-Z 0-9 _ -; {_NAMED}"
        return [Reason("name_invalid", text)]
    if name in RESERVED_NAMES or name in builtin_names:
        return [Reason("name_reserved", f"name {name!r} is reserved; {_NAMED}")]
    return []


def _range_problems(option: str, value: object, limit: int, unit: str) -> list[Reason]:
    if type(value) is not int or value < 1:
        text = f"{option} is {value!r:.80}; expected a whole number from 1 to {limit:,} {unit}"
    elif value > limit:
        text = f"{option} is {value:,}; at most {limit:,} {unit} are allowed"
    else:
        return []
    return [Reason("setting_out_of_range", text)]


def _config_problems(config: object) -> list[Reason]:
    if not isinstance(config, Mapping):
        text = f"config is {type(config).__name__}; expected an object {GIVEN_BY}"
        return [Reason("config_not_an_object", text)]
    try:
        size = len(orjson.dumps(dict(config)))
    except orjson.JSONEncodeError as error:
        return [Reason("config_not_json", f"config is not JSON: {error} {GIVEN_BY}")]
    if size > MAX_CONFIG_BYTES:
        text = f"config is {size:,} bytes of JSON; at most {MAX_CONFIG_BYTES:,} are allowed"
        return [Reason("config_too_large", f"{text} {GIVEN_BY}")]
    return []
