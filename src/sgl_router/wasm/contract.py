"""The contracts on the host's side: what a guest is given, and what its answer means.

All of it belongs to the event loop's thread but `ask_later`: what a decision in the offload lane is
asked goes there as bytes, and its answer is judged when it comes back.
"""

from typing import Any, Protocol

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerView
from sgl_router.core.request import RequestView
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, Answer, JsonEncoder, PluginState, decode_answer
from sgl_router.wasm.abi.table_v1 import TableEncoder
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.driver import GuestError
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.module import PluginModule
from sgl_router.wasm.table_driver import TableDriver

MAX_KEPT_ANSWERS = 1024
MAX_KEPT_ANSWER_BYTES = 128
"""An index alone takes some fifty bytes; a plugin has no more of them than there are workers."""


class Contract(Protocol):
    """Of one version of a plugin; an answer is what `ask_later` has returned.

    Attributes:
        state: what the plugin has returned to be given back.
    """

    state: PluginState

    def decide(
        self, instance: Instance, workers: WorkerView, request: RequestView, limit_ms: float
    ) -> int | None:
        """A decision at once, judged. Raises DecisionError."""

    def encode(self, workers: WorkerView, request: RequestView) -> bytes:
        """What a decision is asked later."""

    def ask_later(
        self, instance: Instance, payload: bytes, now_ms: int, entropy: int, limit_ms: float
    ) -> Any:
        """A decision of what was encoded before; on any thread. Raises DecisionError."""

    def judge(self, answer: Any, workers: WorkerView) -> int | None:
        """The choice in an answer, whose state is taken over.

        Raises DecisionError where it must not be followed; the state is then as it was.
        """

    def encode_outcome(self, outcome: Outcome) -> bytes:
        """The input of `on_request_complete`."""

    def close(self) -> None:
        """It is not used for the moment: nothing is kept up to date for it."""


def contract_for(module: PluginModule, config: WasmPolicyConfig) -> Contract:
    """The contract that a module keeps."""
    return (TableContract if module.abi == "table_v1" else JsonContract)(module, config)


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
        if index is not None:
            healthy = workers.healthy
            if not (0 <= index < len(healthy) and healthy[index]):
                raise _misjudged(self._name, index, workers)
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
        if index is not None:
            healthy = workers.healthy
            if not (0 <= index < len(healthy) and healthy[index]):
                raise _misjudged(self._name, index, workers)
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
        if answer is not None and not (0 <= answer < len(workers) and workers.healthy[answer]):
            raise _misjudged(self._name, answer, workers)
        return answer

    def encode_outcome(self, outcome: Outcome) -> bytes:
        return self._outcomes.encode_outcome(outcome, self.state)

    def close(self) -> None:
        self._encoder.close()


def _misjudged(plugin: str, index: int, workers: WorkerView) -> DecisionError:
    """An index that is none of an eligible worker."""
    if 0 <= index < len(workers):
        return DecisionError(
            plugin, "unhealthy_pick", f"selected_worker is {index}: {workers[index]!r}"
        )
    return DecisionError(
        plugin, "out_of_range", f"selected_worker is {index} of {len(workers)} workers"
    )
