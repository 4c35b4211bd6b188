"""Built-in policies and the factory that makes policies by name."""

from sgl_router.policies.builtin import BUILTIN_POLICIES, PowerOfTwo, Random
from sgl_router.policies.cache_aware import CacheAware
from sgl_router.policies.factory import PolicyFactory, PolicyOptions, shipped_plugins
from sgl_router.policies.hashing import ConsistentHashing, PrefixHash
from sgl_router.policies.least_load import LeastLoad
from sgl_router.policies.manual import Manual
from sgl_router.policies.round_robin import RoundRobin
from sgl_router.wasm.config import WasmPolicyConfig

__all__ = [
    "BUILTIN_POLICIES",
    "CacheAware",
    "ConsistentHashing",
    "LeastLoad",
    "Manual",
    "PolicyFactory",
    "PolicyOptions",
    "PowerOfTwo",
    "PrefixHash",
    "Random",
    "RoundRobin",
    "WasmPolicyConfig",
    "shipped_plugins",
]
