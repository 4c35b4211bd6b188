"""Puts a plugin that is being written on a running router, in shadow; `plugin dev --router` does.

It goes there under a name of its own, NAME-dev, so that no save ever changes what decides. Where
somebody has put that in use, or runs another plugin in shadow, it is left as it is, and told.
"""

from collections.abc import Mapping
from typing import Any

from sgl_router.cli.plugin_tables import percent, text
from sgl_router.cli.router_calls import json_body, module_body
from sgl_router.cli.router_client import Answer, CallError, RouterClient

SUFFIX = "-dev"
_MAX_NAME = 64


class DevShadow:
    """One plugin on one router.

    Args:
        name: the plugin's own.
        share: of the decisions, that it is asked for in shadow.

    Attributes:
        name: that it has on the router.
    """

    def __init__(self, client: RouterClient, name: str, share: float) -> None:
        self.name = name[: _MAX_NAME - len(SUFFIX)] + SUFFIX
        self._client = client
        self._share = share
        self._loaded = False
        self._observed: object = None

    def put(self, module: bytes, settings: Mapping[str, Any]) -> list[str]:
        """Load a version and begin a shadow run of it; what was done, in sentences.

        Raises CallError where the router does not do it.
        """
        said = self.agreement()
        if roles := self._decides_on():
            return [
                *said,
                f"{self.name} decides about the {roles} workers of the router: not replaced; "
                "have another policy decide (sgl-router plugin use NAME) to go on",
            ]
        self._loaded = True  # perhaps, where the router does not answer
        answer = self._client.call("PUT", f"/plugins/{self.name}", module_body(module, settings))
        said.append(f"{_at(answer, 'status')}: {self.name} on the router")
        other = self._in_shadow()
        if other not in (None, self.name):
            said.append(
                f"{text(other)} runs in shadow there: left alone; sgl-router plugin shadow --stop "
                "ends that"
            )
            return said
        body = {"plugin": self.name, "share": self._share, "role": "regular"}
        self._client.call("PUT", "/shadow", json_body(body))
        self._observed = None
        said.append(f"in shadow, for {percent(self._share)} of the requests")
        return said

    def agreement(self) -> list[str]:
        """How often it agreed with the policy in use, where that is news. Raises CallError."""
        if not self._loaded:
            return []
        return self._agreement(_at(self._client.call("GET", "/shadow"), "shadow"))

    def _agreement(self, report: object) -> list[str]:
        """What a report says of it, where that is news."""
        if not isinstance(report, dict) or report.get("plugin") != self.name:
            return []
        observed = report.get("observed")
        if observed in (self._observed, 0, None):
            return []
        self._observed = observed
        failures = report.get("failures")
        return [
            f"shadow: {text(report.get('decided'))} of {text(observed)} decided, "
            f"{percent(report.get('agreement'))} agree with {text(report.get('policy'))}"
            + (f"; failures: {text(failures)}" if failures else "")
        ]

    def end(self) -> list[str]:
        """End its shadow run and unload it, where it decides nothing. Raises CallError."""
        if not self._loaded:
            return []
        said = []
        if self._in_shadow() == self.name:
            last = self._client.call("DELETE", "/shadow")
            said = [*self._agreement(_at(last, "shadow")), "the shadow run has ended"]
        if roles := self._decides_on():
            return [*said, f"{self.name} stays: it decides about the {roles} workers"]
        self._loaded = False
        plugins = _items(self._client.call("GET", "/plugins"), "plugins")
        if all(one.get("name") != self.name for one in plugins):
            return said
        self._client.call("DELETE", f"/plugins/{self.name}")
        return [*said, f"{self.name} is unloaded"]

    def _decides_on(self) -> str:
        """The roles of workers that it decides about, in words."""
        policies = _items(self._client.call("GET", "/policy"), "policies")
        return " and ".join(
            str(one.get("role")) for one in policies if one.get("policy") == self.name
        )

    def _in_shadow(self) -> Any:
        """The name of the plugin that runs in shadow, or None."""
        report = _at(self._client.call("GET", "/shadow"), "shadow")
        return report.get("plugin") if isinstance(report, dict) else None


def _at(answer: Answer, key: str) -> Any:
    return answer.value.get(key) if isinstance(answer.value, dict) else None


def _items(answer: Answer, key: str) -> list[dict[str, Any]]:
    """Raises CallError where there is no such list: what decides must be known."""
    items = _at(answer, key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise CallError(f"the answer has no list of {key}; is it a router?")
    return items
