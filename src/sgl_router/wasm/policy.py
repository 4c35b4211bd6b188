"""`WasmPolicy`: a plugin as a policy."""

import logging
from collections import Counter

from sgl_router.core.policy import Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, JsonEncoder, decode_answer, merge_state
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.sandbox import Sandbox

_log = logging.getLogger(__name__)


class WasmPolicy(Policy):
    """Decides by a plugin.

    All users of one plugin share this object, and so its instance and its state. It belongs to
    one thread at a time: after it is loaded, to the event loop's.

    Attributes:
        config: the plugin's settings.
        digest: SHA-256 of its module, hexadecimal.
        decisions: how many it was asked for.
        failures: how many of them failed, by kind.
    """

    needs_body = True

    def __init__(self, sandbox: Sandbox) -> None:
        """Instantiate the plugin and try it out. Raises DecisionError where it fails."""
        config, module = sandbox.config, sandbox.module
        self.name = config.name
        self.fallback = config.fallback
        self.config = config
        self.digest = module.digest
        self.decisions = 0
        self.failures: Counter[FailureKind] = Counter()
        self._sandbox = sandbox
        self._encoder = JsonEncoder(
            config.config,
            with_text="request_text" in module.manifest.needs,
            max_text_bytes=config.max_request_text_bytes,
        )
        self._wants_outcomes = "on_request_complete" in module.exports
        self._state = EMPTY_STATE
        self._last_now_ms = 0
        self._instance: Instance | None = None
        self._try_out()
        self._instance = Instance(sandbox)  # the one tried out may have learnt from the trial

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Ask the plugin. Raises DecisionError; the state is then as it was before."""
        self.decisions += 1
        try:
            return self._decide(workers, request)
        except DecisionError as error:
            self._count(error)
            raise

    def on_request_complete(self, outcome: Outcome) -> None:
        """Tell the plugin, where it exports the function; its failure fails nothing else."""
        if not self._wants_outcomes:
            return
        payload = self._encoder.encode_outcome(outcome, self._state)
        try:
            self._live_instance().on_request_complete(payload, self._last_now_ms)
        except DecisionError as error:
            self._count(error)
        self._drop_poisoned()

    def _decide(self, workers: WorkerView, request: RequestView) -> int | None:
        self._last_now_ms = request.now_ms
        payload = self._encoder.encode_request(workers, request, self._state)
        instance = self._live_instance()
        try:
            result = instance.select_worker(payload, request.now_ms, request.entropy)
        finally:
            self._drop_poisoned()
        if instance.late_failure is not None:
            self._count(instance.late_failure)
        answer = decode_answer(self.name, result)
        index = answer.selected_worker
        if index is not None:
            self._judge(index, workers)
        if answer.state is not None:
            self._state = merge_state(self.name, self._state, answer.state)
        return index

    def _judge(self, index: int, workers: WorkerView) -> None:
        if not 0 <= index < len(workers):
            raise DecisionError(
                self.name, "out_of_range", f"selected_worker is {index} of {len(workers)} workers"
            )
        if not workers.healthy[index]:
            raise DecisionError(
                self.name, "unhealthy_pick", f"selected_worker is {index}: {workers[index]!r}"
            )

    def _live_instance(self) -> Instance:
        if self._instance is None:
            self._instance = Instance(self._sandbox)
        return self._instance

    def _drop_poisoned(self) -> None:
        if self._instance is not None and self._instance.poisoned:
            self._instance = None

    def _try_out(self) -> None:
        """One decision between two made-up workers; reporting an error itself is no failure."""
        registry = WorkerRegistry()
        for port in (1, 2):
            registry.add(Worker(f"http://127.0.0.1:{port}", Health.UP))
        request = RequestView("self-test", "/v1/chat/completions")
        try:
            self._decide(registry.view(), request)
        except DecisionError as error:
            if error.kind != "plugin_error":
                raise
        self._state = EMPTY_STATE

    def _count(self, error: DecisionError) -> None:
        """Count a failure; the log gets the 1st, 10th, 100th … of a kind, not each."""
        self.failures[error.kind] += 1
        count = self.failures[error.kind]
        if str(count).strip("0") == "1":
            text = str(error)  # a record that is kept must not keep the error's frames
            _log.warning("%s (failure %d of this kind)", text, count)
