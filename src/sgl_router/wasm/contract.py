"""The contracts on the host's side: what a guest is given, and what its answer means.

All of it belongs to the event loop's thread but `ask_later`: what a decision in the offload lane is
asked goes there as plain data that nothing changes, and its answer is judged when it comes back.
"""

from collections.abc import Callable
from typing import Any, Protocol

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.component_v1 import (
    ComponentAnswer,
    ComponentEncoder,
    ComponentInput,
    ComponentOutcome,
    encode_outcome,
    state_patch,
)
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, Answer, JsonEncoder, PluginState, decode_answer
from sgl_router.wasm.abi.table_v1 import TableEncoder
from sgl_router.wasm.component import ComponentDriver
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.driver import GuestError
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.module import Abi, PluginModule
from sgl_router.wasm.table_driver import TableDriver

MAX_KEPT_ANSWERS = 1024
MAX_KEPT_ANSWER_BYTES = 128
"""An index alone takes some fifty bytes; a plugin has no more of them than there are workers."""


class Contract(Protocol):
    """Of one version of a plugin.

    An input is what `encode` has made, and an answer what `ask_later` has returned.

    Attributes:
        state: what the plugin has returned to be given back.
    """

    state: PluginState

    def decide(
        self, instance: Instance, workers: WorkerView, request: RequestView, limit_ms: float
    ) -> int | None:
        """A decision at once, judged. Raises DecisionError."""

    def encode(self, workers: WorkerView, request: RequestView) -> Any:
        """What a decision is asked later."""

    def ask_later(
        self, instance: Instance, payload: Any, now_ms: int, entropy: int, limit_ms: float
    ) -> Any:
        """A decision of what was encoded before; on any thread. Raises DecisionError."""

    def judge(self, answer: Any, workers: WorkerView) -> int | None:
        """The choice in an answer, whose state is taken over.

        Raises DecisionError where it must not be followed; the state is then as it was.
        """

    def encode_outcome(self, outcome: Outcome) -> Any:
        """The input of `on_request_complete`."""

    def close(self) -> None:
        """It is not used for the moment: nothing is kept up to date for it."""


def contract_for(module: PluginModule, config: WasmPolicyConfig) -> Contract:
    """The contract that a module keeps."""
    contracts: dict[Abi, Callable[[PluginModule, WasmPolicyConfig], Contract]] = {
        "json_v1": JsonContract,
        "table_v1": TableContract,
        "component_v1": ComponentContract,
    }
    return contracts[module.abi](module, config)


class JsonContract:
    """The JSON ABI, version 1."""

    def __init__(self, module: PluginModule, config: WasmPolicyConfig) -> None:
        manifest = module.manifest
        self._name = config.name
        self._encoder = JsonEncoder(
            config.config,
            needs=manifest.needs,
            reads_body=manifest.reads_body,
            max_text_bytes=config.max_request_text_bytes,
        )
        self._answers: dict[bytes, Answer] = {}
        self.state = EMPTY_STATE

    def decide(
        self, instance: Instance, workers: WorkerView, request: RequestView, limit_ms: float
    ) -> int | None:
        payload = self._encoder.encode_request(workers, request, self.state)
        answer = instance.select_worker(payload, request.now_ms, request.entropy, limit_ms)
        return self.judge(answer, workers)

    def encode(self, workers: WorkerView, request: RequestView) -> bytes:
        return self._encoder.encode_request(workers, request, self.state)

    def ask_later(
        self, instance: Instance, payload: bytes, now_ms: int, entropy: int, limit_ms: float
    ) -> bytes:
        return instance.select_worker(payload, now_ms, entropy, limit_ms)

    def judge(self, answer: bytes, workers: WorkerView) -> int | None:
        known = self._answers.get(answer)
        index, patch = known if known is not None else self._read(answer)
        healthy = workers.healthy
        if index is not None and not (0 <= index < len(healthy) and healthy[index]):
            _check_eligible(self._name, index, workers)  # only then: else each decision calls it
        if patch is not None:
            self.state = self.state.merged(self._name, patch)
        return index

    def encode_outcome(self, outcome: Outcome) -> bytes:
        return self._encoder.encode_outcome(outcome, self.state)

    def close(self) -> None:
        pass

    def _read(self, result: bytes) -> Answer:
        """Decode a result, once for all that are the same where it has no state."""
        answer = decode_answer(self._name, result)
        if (
            answer[1] is None
            and len(result) <= MAX_KEPT_ANSWER_BYTES
            and len(self._answers) < MAX_KEPT_ANSWERS
        ):
            self._answers[result] = answer
        return answer


class TableContract:
    """The table ABI, version 1. Its state is the guest's own."""

    def __init__(self, module: PluginModule, config: WasmPolicyConfig) -> None:
        manifest = module.manifest
        self._name = config.name
        self._encoder = TableEncoder(
            manifest.needs, config.max_request_text_bytes, manifest.reads_body
        )
        self._outcomes = JsonEncoder(config.config, needs=(), max_text_bytes=0)
        self.state = EMPTY_STATE

    def decide(
        self, instance: Instance, workers: WorkerView, request: RequestView, limit_ms: float
    ) -> int | None:
        driver = instance.driver
        assert type(driver) is TableDriver, "made for the module"
        try:
            slot = self._encoder.encode(driver, workers, request)
        except GuestError as error:
            raise instance.failed(error) from None
        index = instance.call(driver.select, slot, limit_ms, request.now_ms, request.entropy)
        _check_eligible(self._name, index, workers)
        return index

    def encode(self, workers: WorkerView, request: RequestView) -> bytes:
        return self._encoder.snapshot(workers, request)

    def ask_later(
        self, instance: Instance, payload: bytes, now_ms: int, entropy: int, limit_ms: float
    ) -> int | None:
        driver = instance.driver
        assert type(driver) is TableDriver, "made for the module"
        return instance.call(driver.select_from, payload, limit_ms, now_ms, entropy)

    def judge(self, answer: int | None, workers: WorkerView) -> int | None:
        _check_eligible(self._name, answer, workers)
        return answer

    def encode_outcome(self, outcome: Outcome) -> bytes:
        return self._outcomes.encode_outcome(outcome, self.state)

    def close(self) -> None:
        self._encoder.close()


class ComponentContract:
    """The component ABI, version 1. Its state is kept as that of the JSON ABI is."""

    def __init__(self, module: PluginModule, config: WasmPolicyConfig) -> None:
        manifest = module.manifest
        self._name = config.name
        self._encoder = ComponentEncoder(
            manifest.needs, config.max_request_text_bytes, manifest.reads_body
        )
        self.state = EMPTY_STATE

    def decide(
        self, instance: Instance, workers: WorkerView, request: RequestView, limit_ms: float
    ) -> int | None:
        given = self._encoder.encode(workers, request, self.state)
        return self.judge(self.ask_later(instance, given, 0, 0, limit_ms), workers)

    def encode(self, workers: WorkerView, request: RequestView) -> ComponentInput:
        return self._encoder.encode(workers, request, self.state)

    def ask_later(
        self,
        instance: Instance,
        payload: ComponentInput,
        now_ms: int,
        entropy: int,
        limit_ms: float,
    ) -> ComponentAnswer:
        driver = instance.driver
        assert type(driver) is ComponentDriver, "made for the module"
        return instance.call(driver.decide, payload, limit_ms)

    def judge(self, answer: ComponentAnswer, workers: WorkerView) -> int | None:
        patch = state_patch(self._name, answer)
        index = answer.selected_worker
        _check_eligible(self._name, index, workers)
        if patch is not None:
            self.state = self.state.merged(self._name, patch)
        return index

    def encode_outcome(self, outcome: Outcome) -> ComponentOutcome:
        return encode_outcome(outcome)

    def close(self) -> None:
        pass


def _check_eligible(plugin: str, index: int | None, workers: WorkerView) -> None:
    """Raises DecisionError where an index is none of an eligible worker."""
    if index is None:
        return
    healthy = workers.healthy
    if not 0 <= index < len(healthy):
        raise DecisionError(
            plugin, "out_of_range", f"selected_worker is {index} of {len(healthy)} workers"
        )
    if not healthy[index]:
        raise DecisionError(
            plugin, "unhealthy_pick", f"selected_worker is {index}: {workers[index]!r}"
        )
