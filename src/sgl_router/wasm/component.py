"""Components: compiled and linked with nothing, and the calls of one of their instances.

A component exports the interface `sgl:router/policy@1.0.0` (`wit/policy.wit`). It imports nothing.
What wasmtime's core modules do not have to share with them is here: components have an engine of
their own, whose guests may use more of the stack, and with it a clock of their own.
"""

import wasmtime
from wasmtime.component import Component, Linker

from sgl_router.wasm.abi.component_v1 import (
    FUNCTIONS,
    INTERFACE,
    ComponentAnswer,
    ComponentInput,
    ComponentOutcome,
    error_text,
)
from sgl_router.wasm.artifacts import ArtifactCache
from sgl_router.wasm.clock import EpochClock
from sgl_router.wasm.compile import BaseCompiler, CompileLimits
from sgl_router.wasm.compile_child import COMPONENT
from sgl_router.wasm.component_calls import (
    FastComponentCalls,
    Functions,
    PolicyCalls,
    PublicComponentCalls,
)
from sgl_router.wasm.deserialize import load_component
from sgl_router.wasm.driver import GuestError
from sgl_router.wasm.engine import make_component_engine


def component_limits(size: int) -> CompileLimits:
    """For a component of so many bytes.

    What a component holds is mostly code, of an interpreter and its libraries, and takes time and
    memory by its size: the 18 MB of a usual Python plugin take 14 s of CPU time and 900 MB of
    address space, and become 52 MB. A small one gets no more than a module.
    """
    mib = size // (1024 * 1024)
    return CompileLimits(
        memory_bytes=(512 + 48 * mib) * 1024 * 1024,
        cpu_secs=30 + 2 * mib,
        wall_secs=60.0 + 4 * mib,
        max_artifact_bytes=(64 + 5 * mib) * 1024 * 1024,
        at_once=1,
    )


class ComponentCompiler(BaseCompiler[Component]):
    """Compiles components, one at a time."""

    _kind = COMPONENT

    def __init__(self, engine: wasmtime.Engine, cache: ArtifactCache | None) -> None:
        """`engine` must have the settings of `make_component_engine`."""
        super().__init__(engine, cache, component_limits(0))

    def _load(self, artifact: bytearray | memoryview) -> Component:
        return load_component(self._engine, artifact)

    def _limits_of(self, wasm: bytes) -> CompileLimits:
        return component_limits(len(wasm))


class ComponentRuntime:
    """What all components share.

    Attributes:
        engine: for all of them.
        clock: bounds the calls.
        calls: makes the calls into one instance.
    """

    def __init__(
        self,
        cache: ArtifactCache | None,
        *,
        in_child: bool,
        calls: type[FastComponentCalls] | type[PublicComponentCalls],
    ) -> None:
        """See `RuntimeOptions`. Takes milliseconds, and a thread."""
        self.engine = make_component_engine()
        self.clock = EpochClock(self.engine)
        self.calls = calls
        self._in_child = in_child
        self._compiler = ComponentCompiler(self.engine, cache)

    def compile(self, wasm: bytes, digest: str) -> Component:
        """Raises CompileError or wasmtime.WasmtimeError."""
        if self._in_child:
            return self._compiler.compile(wasm, digest)
        return Component(self.engine, wasm)

    def stop_compiling(self) -> None:
        """End what is being compiled; from any thread."""
        self._compiler.close()

    def close(self) -> None:
        """End what is under way; nothing may be called any more."""
        self.stop_compiling()
        self.clock.close()


class LinkedComponent:
    """A component whose functions have the types of the contract, ready to be instantiated."""

    def __init__(self, component: Component, runtime: ComponentRuntime) -> None:
        self._component = component
        self._runtime = runtime
        self._linker = Linker(runtime.engine)  # nothing is defined in it: nothing can be imported
        interface = component.get_export_index(INTERFACE)
        self._indexes = [component.get_export_index(name, interface) for name in FUNCTIONS]

    def start(self, store: wasmtime.Store, config: bytes, pages: int) -> "ComponentDriver":
        """An instance that has been given its configuration, as JSON.

        Raises wasmtime.WasmtimeError, and GuestError where it refuses the configuration.
        """
        instance = self._linker.instantiate(store, self._component)
        functions = []
        for index in self._indexes:
            assert index is not None, "its types were checked"
            function = instance.get_func(store, index)
            assert function is not None, "its types were checked"
            functions.append(function)
        driver = ComponentDriver(self._runtime.calls(store, Functions(*functions)), pages)
        driver.configure(config)
        return driver


class ComponentDriver:
    """What makes the calls into one instance of a component.

    Attributes:
        pages: of 64 KiB, that its memory had at the start: how much it has grown since is not to be
            known, as a component does not export its memory.
    """

    def __init__(self, calls: PolicyCalls, pages: int) -> None:
        self._calls = calls
        self.pages = pages

    def configure(self, config: bytes) -> None:
        """Raises wasmtime.WasmtimeError, and GuestError (`plugin_error`) where it is refused."""
        error = self._calls.init(config)
        if error is not None:
            raise GuestError("plugin_error", f"init refuses the configuration: {error_text(error)}")

    def decide(self, given: ComponentInput) -> ComponentAnswer:
        """One decision. Raises wasmtime.WasmtimeError."""
        return self._calls.select_worker(given)

    def report(self, given: ComponentOutcome) -> None:
        """Tell it how a request has ended. Raises wasmtime.WasmtimeError."""
        self._calls.on_request_complete(given)
