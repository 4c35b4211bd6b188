"""Built-in policies and the factory that makes policies by name."""

from sgl_router.policies.builtin import BUILTIN_POLICIES, LeastLoad, PowerOfTwo, Random, RoundRobin
from sgl_router.policies.factory import PolicyFactory, shipped_plugins
from sgl_router.wasm.config import WasmPolicyConfig

__all__ = [
    "BUILTIN_POLICIES",
    "LeastLoad",
    "PolicyFactory",
    "PowerOfTwo",
    "Random",
    "RoundRobin",
    "WasmPolicyConfig",
    "shipped_plugins",
]
