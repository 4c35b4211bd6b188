"""The wasmtime engine, and what all plugins that run in it share."""

import threading
from dataclasses import dataclass
from pathlib import Path

import wasmtime

from sgl_router.wasm.artifacts import ArtifactCache
from sgl_router.wasm.calls import Calls
from sgl_router.wasm.clock import EpochClock
from sgl_router.wasm.compile import Compiler
from sgl_router.wasm.component import ComponentRuntime
from sgl_router.wasm.component_calls import FastComponentCalls, PublicComponentCalls
from sgl_router.wasm.driver import driver_text
from sgl_router.wasm.engine import make_engine
from sgl_router.wasm.table_driver import table_driver_text


@dataclass(frozen=True, slots=True)
class RuntimeOptions:
    """How plugins are compiled and called.

    Attributes:
        in_child: whether modules are compiled in processes of their own, with limits. A module that
            is not trusted must be; to compile in this process is quicker by a process's start.
        cache_folder: where compiled modules are kept; None: they are not.
        calls: how guests are called.
    """

    in_child: bool = True
    cache_folder: Path | None = None
    calls: type[Calls] = Calls


class WasmRuntime:
    """What all plugins share.

    Attributes:
        engine: for everything that is compiled and run.
        calls: how guests are called.
        clock: bounds the calls.
        driver, table_driver: compiled; they make the calls into each guest.
        linking: held while host functions are defined; wasmtime-py hands out their indexes without
            a lock of its own.
    """

    def __init__(self, options: RuntimeOptions) -> None:
        """Takes milliseconds."""
        self.engine = make_engine()
        self.calls = options.calls()
        self.linking = threading.Lock()
        folder = options.cache_folder
        self._in_child = options.in_child
        self._cache = None if folder is None else ArtifactCache(folder)
        self._compiler = Compiler(self.engine, self._cache)
        self.driver = self._compiler.compile_own(driver_text())
        self.table_driver = self._compiler.compile_own(table_driver_text())
        self.clock = EpochClock(self.engine)
        self._lock = threading.Lock()
        self._components: ComponentRuntime | None = None
        self._stopped = False

    @property
    def components(self) -> ComponentRuntime:
        """What components run in, made when it is first asked for; for any thread."""
        with self._lock:
            if self._components is None:
                calls = PublicComponentCalls if self.calls.public else FastComponentCalls
                self._components = ComponentRuntime(
                    self._cache, in_child=self._in_child, calls=calls
                )
                if self._stopped:
                    self._components.close()
            return self._components

    def compile(self, wasm: bytes, digest: str) -> wasmtime.Module:
        """The module of checked bytes with that SHA-256.

        Raises CompileError or wasmtime.WasmtimeError.
        """
        if self._in_child:
            return self._compiler.compile(wasm, digest)
        return wasmtime.Module(self.engine, wasm)

    def stop_compiling(self) -> None:
        """End what is being compiled; from any thread."""
        self._compiler.close()
        with self._lock:
            self._stopped = True
            components = self._components
        if components is not None:
            components.stop_compiling()

    def close(self) -> None:
        """End what is under way; nothing may be called any more."""
        self.stop_compiling()
        self.clock.close()
        if self._components is not None:
            self._components.close()
