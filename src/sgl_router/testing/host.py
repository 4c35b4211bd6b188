"""Hosts one plugin as a router does, without a router: the same checks, limits and calls."""

import copy
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import orjson

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError
from sgl_router.testing.answer import Answer, Failure
from sgl_router.testing.case import DecisionCase
from sgl_router.testing.settings import BUILTIN_NAMES, with_config
from sgl_router.wasm.abi.json_v1 import PluginState
from sgl_router.wasm.artifacts import default_cache_folder
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.guest import Guest
from sgl_router.wasm.manifest import config_problems
from sgl_router.wasm.module import PluginModule, check_module, read_module
from sgl_router.wasm.runtime import RuntimeOptions, WasmRuntime
from sgl_router.wasm.sandbox import Sandbox


class Host(Protocol):
    """What can host a plugin; `PluginHost` is this router's.

    Attributes:
        abi: the contract that the plugin keeps: `json_v1`, `table_v1` or `component_v1`.
        config: the configuration that it was started with.
        per_call: whether each decision has an instance of its own.
        wants_outcomes: whether the plugin is told how requests end.
        instances: how many instances it has had since `start`.
    """

    @property
    def abi(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def per_call(self) -> bool: ...
    @property
    def wants_outcomes(self) -> bool: ...
    @property
    def instances(self) -> int: ...

    def start(self, config: Mapping[str, Any] | None = None) -> None:
        """Begin anew: a new instance, without state, with this configuration, or its own.

        Raises DecisionError where it fails.
        """

    def allows(self, config: Mapping[str, Any]) -> bool:
        """Whether the plugin's schema lets it have this configuration."""

    def decide(self, case: DecisionCase) -> Answer:
        """Have it decide, with the case's state; its configuration is that of `start`."""

    def ask(self, payload: bytes, case: DecisionCase) -> Answer:
        """Give a plugin of the JSON ABI this input, whatever it holds; judged by the case."""

    def complete(self, outcome: Outcome) -> Failure | None:
        """Tell it how a request has ended; returns how that failed."""

    def renew(self) -> None:
        """Give it another instance with the same state, as after a failure."""

    def close(self) -> None:
        """It is used no more."""


def own_runtime() -> WasmRuntime:
    """As a router's: modules are compiled in a process of their own, and kept where it keeps them.

    Whoever has it closes it.
    """
    return WasmRuntime(RuntimeOptions(cache_folder=default_cache_folder()))


class PluginHost:
    """This router's host, for one plugin; used by one thread.

    Args:
        module: its bytes, or the file that holds them.
        config: its settings; `module_path` is not read.
        runtime: to share with others; None: one of its own, whose compiled modules are kept where
            the router keeps them.

    Raises PluginRefused with every reason found, DecisionError where its start fails.
    """

    def __init__(
        self, module: bytes | Path, config: WasmPolicyConfig, runtime: WasmRuntime | None = None
    ) -> None:
        checked = (
            check_module(config, module, BUILTIN_NAMES)
            if isinstance(module, bytes)
            else read_module(replace(config, module_path=str(module)), BUILTIN_NAMES)
        )
        self._own = own_runtime() if runtime is None else None
        runtime = runtime or self._own
        assert runtime is not None, "given or made"
        try:
            self._compiled = Sandbox(checked, config, runtime)
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def module(self) -> PluginModule:
        """What was checked."""
        return self._compiled.module

    @property
    def settings(self) -> WasmPolicyConfig:
        """Its settings, with the configuration of the last `start`."""
        return self._sandbox.config

    @property
    def config(self) -> Mapping[str, Any]:
        return self.settings.config

    @property
    def abi(self) -> str:
        return self.module.abi

    @property
    def needs(self) -> frozenset[str]:
        """What its manifest asks for."""
        return self.module.manifest.needs

    @property
    def per_call(self) -> bool:
        return self.settings.isolation == "per_call"

    @property
    def wants_outcomes(self) -> bool:
        return self._guest.wants_outcomes

    @property
    def instances(self) -> int:
        return self._guest.instances

    @property
    def memory_bytes(self) -> int:
        """Of the guest's memory; 0 where it has no instance."""
        instance = self._guest.instance
        return 0 if instance is None else instance.memory_bytes

    @property
    def lane(self) -> Literal["inline", "offload"]:
        """Where a router has it decide at first: on the event loop, or on a thread of its own."""
        return "offload" if self.module.decides_aside(self.settings.lane) else "inline"

    @property
    def output(self) -> str | None:
        """The end of what it wrote to stdout and stderr during the last call, or None."""
        return self._sandbox.host.output.last if self.module.imports else None

    @property
    def state(self) -> Mapping[str, Any]:
        """What the plugin has returned to be given back."""
        return self._guest.contract.state.values

    def start(self, config: Mapping[str, Any] | None = None) -> None:
        sandbox = self._compiled
        if config is not None:
            sandbox = copy.copy(sandbox)  # compiled once, whatever the configuration
            sandbox.config = with_config(sandbox.config, config)
        self._sandbox = sandbox
        self._limit_ms = sandbox.config.max_execution_time_ms
        self._guest = Guest(sandbox)
        self._guest.start(self._limit_ms)

    def allows(self, config: Mapping[str, Any]) -> bool:
        return not config_problems(self.module.manifest, config)

    def decide(self, case: DecisionCase) -> Answer:
        return self._timed(case, self._guest.decide, case.workers, case.request)

    def select(self, workers: WorkerView, request: RequestView) -> int | None:
        """A decision with the state as it is. Raises DecisionError."""
        return self._guest.decide(workers, request, self._limit_ms)

    def ask(self, payload: bytes, case: DecisionCase) -> Answer:
        assert self.abi == "json_v1", "other contracts have no input as bytes"
        return self._timed(case, self._ask, payload, case)

    def complete(self, outcome: Outcome) -> Failure | None:
        guest = self._guest
        try:
            guest.report(guest.encode_outcome(outcome), 0, self._limit_ms)
        except DecisionError as error:
            return Failure.of(error)
        return None

    def renew(self) -> None:
        self._guest.instance = None

    def close(self) -> None:
        if self._own is not None:
            self._own.close()

    def __enter__(self) -> "PluginHost":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(self, payload: bytes, case: DecisionCase, limit_ms: float) -> int | None:
        guest, request = self._guest, case.request
        answer, _, guest.late_failure = guest.answer(
            payload, request.now_ms, request.entropy, limit_ms
        )
        return guest.contract.judge(answer, case.workers)

    def _timed(self, case: DecisionCase, decide: Any, *arguments: Any) -> Answer:
        guest = self._guest
        guest.contract.state = PluginState(dict(case.state), orjson.dumps(dict(case.state)))
        guest.late_failure = None
        index, failure = None, None
        started = time.perf_counter_ns()
        try:
            index = decide(*arguments, self._limit_ms)
        except DecisionError as error:
            failure = Failure.of(error)
        elapsed_ns = time.perf_counter_ns() - started
        late, guest.late_failure = guest.late_failure, None
        return Answer(
            selected_worker=index,
            state=guest.contract.state.values,
            failure=failure,
            late=None if late is None else Failure.of(late),
            elapsed_us=elapsed_ns / 1000,
            memory_bytes=self.memory_bytes,
        )
