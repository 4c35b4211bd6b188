"""Which plugins the settings name."""

from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from sgl_router.config import RouterConfig
from sgl_router.config.refused import REFUSED_POLICIES
from sgl_router.errors import ConfigError, PluginRefused
from sgl_router.policies import WasmPolicyConfig, shipped_plugins
from sgl_router.wasm.refusals import Reason

_PLUGIN_OPTIONS = [field.name for field in fields(WasmPolicyConfig) if field.name != "name"]


def policy_name(policy: str) -> str:
    """A path names the plugin that is loaded from it."""
    return Path(policy).stem if policy.endswith(".wasm") else policy


def plugins_to_load(config: RouterConfig, known: Collection[str] = ()) -> list[WasmPolicyConfig]:
    """Each plugin that the settings name, once, but for those that are known from elsewhere.

    Raises ConfigError, for a policy that only other routers have too.
    """
    settings = config.plugin_config
    assert not isinstance(settings, str), "the file was read when the settings were"
    policies = [p for p in (config.policy, config.prefill_policy, config.decode_policy) if p]
    paths: dict[str, str | Path] = {}
    for path in (*config.plugin, *(policy for policy in policies if policy.endswith(".wasm"))):
        name = Path(path).stem
        if paths.setdefault(name, path) != path:
            raise ConfigError(
                f"two plugins are named {name!r}: {paths[name]} and {path} (option --plugin)"
            )
    for name, options in (settings or {}).items():
        if "module_path" in options:
            paths.setdefault(name, str(options["module_path"]))
    shipped = shipped_plugins()
    wanted = {*(policy.removeprefix("wasm:") for policy in policies), *(settings or {})}
    for name in sorted(wanted & shipped.keys() - paths.keys()):
        paths[name] = shipped[name]
    unknown = sorted((settings or {}).keys() - paths.keys() - set(known))
    if unknown:
        raise ConfigError(
            f"plugin_config names {', '.join(map(repr, unknown))}, which is not loaded; add "
            "module_path to its settings or give --plugin PATH (option --plugin-config)"
        )
    for policy in policies:
        if policy in REFUSED_POLICIES and policy not in paths:
            raise ConfigError(
                f"there is no policy {policy!r}; the nearest is {REFUSED_POLICIES[policy]} "
                "(option --policy)"
            )
    return [plugin_settings(config, name, path) for name, path in paths.items()]


def plugin_settings(config: RouterConfig, name: str, path: str | Path) -> WasmPolicyConfig:
    """What is known of one plugin. Raises ConfigError for a setting that there is not."""
    assert not isinstance(config.plugin_config, str), "the file was read when the settings were"
    options: dict[str, Any] = (config.plugin_config or {}).get(name, {})
    unknown = sorted(options.keys() - set(_PLUGIN_OPTIONS))
    if unknown:
        raise ConfigError(
            f"plugin_config of {name!r} has the unknown setting {', '.join(unknown)}; known: "
            f"{', '.join(_PLUGIN_OPTIONS)} (option --plugin-config)"
        )
    return WasmPolicyConfig(**{**options, "module_path": str(path), "name": name})


def known_settings(name: str, path: str, settings: Mapping[str, Any]) -> WasmPolicyConfig:
    """The same for settings that came with a plugin. Raises PluginRefused."""
    known = [option for option in _PLUGIN_OPTIONS if option != "module_path"]
    unknown = sorted(settings.keys() - set(known))
    if unknown:
        texts = [f"there is no setting {key!a:.80}; known: {', '.join(known)}" for key in unknown]
        raise PluginRefused(name, [Reason("setting_unknown", text) for text in texts])
    given = dict(settings)
    if isinstance(given.get("allowed_syscalls"), list):
        given["allowed_syscalls"] = tuple(given["allowed_syscalls"])
    return WasmPolicyConfig(**given, module_path=path, name=name)
