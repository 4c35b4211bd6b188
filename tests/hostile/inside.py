"""What these tests look at inside a plugin's policy, because nothing outside shows it."""

import weakref
from collections.abc import Mapping
from typing import Any

from sgl_router.wasm.policy import WasmPolicy


def living(policy: WasmPolicy) -> list[weakref.ref[Any]]:
    """The instance that decides next, and its store; to be seen dying."""
    instance = policy.current._guest.instance
    assert instance is not None, "it has decided, and has not failed since"
    return [weakref.ref(instance), weakref.ref(instance._store)]


def state(policy: WasmPolicy) -> Mapping[str, Any]:
    """What the plugin has returned to be given back."""
    return policy.current._guest.contract.state.values


def failures(policy: WasmPolicy) -> dict[str, int]:
    """How many decisions have failed, by kind."""
    return {str(kind): count for kind, count in policy.current.failures.items()}
