"""Loads a plugin into a router of this process, has it decide, and unloads it."""

import asyncio

from sgl_router.policies import PolicyFactory, WasmPolicyConfig


async def main() -> None:
    factory = PolicyFactory()
    await factory.load_wasm_plugin(
        WasmPolicyConfig(
            module_path="build/my_policy.wasm",
            name="my_policy",
            max_execution_time_ms=1000,
            max_memory_bytes=1024 * 1024,
            allowed_syscalls=[],
            config={},
        )
    )
    policy = factory.create_by_name("my_policy")
    print(policy.name, factory.list_wasm_plugins())
    print(factory.unload_wasm_plugin("my_policy"))
    factory.close()


asyncio.run(main())
