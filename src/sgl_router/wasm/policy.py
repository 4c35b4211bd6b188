"""`WasmPolicy`: a plugin as a policy."""

import logging
from collections import Counter

from sgl_router.core.policy import KNOWN_NEEDS, Outcome, Policy
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError, FailureKind
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, Answer, JsonEncoder, decode_answer
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.sandbox import Sandbox

_log = logging.getLogger(__name__)

MAX_KEPT_ANSWERS = 1024
MAX_KEPT_ANSWER_BYTES = 128
"""An index alone takes some fifty bytes; a plugin has no more of them than there are workers."""


class WasmPolicy(Policy):
    """Decides by a plugin.

    All users of one plugin share this object, and so its instance and its state. It belongs to
    one thread at a time: after it is loaded, to the event loop's.

    Attributes:
        digest: SHA-256 of its module, hexadecimal.
        version: the plugin's own, where its manifest tells it.
        failures: how many decisions failed, by kind.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        """Instantiate the plugin and try it out. Raises DecisionError where it fails."""
        config, module = sandbox.config, sandbox.module
        self.name = config.name
        self.fallback = config.fallback
        manifest = module.manifest
        # The contract gives the body's model, session and length to a plugin that does not decline.
        body = {"body"} if manifest.reads_body else set[str]()
        self.needs = (manifest.needs & KNOWN_NEEDS) | body
        self.digest = module.digest
        self.version = manifest.version
        self.failures: Counter[FailureKind] = Counter()
        self._sandbox = sandbox
        self._encoder = JsonEncoder(
            config.config,
            needs=manifest.needs,
            reads_body=manifest.reads_body,
            max_text_bytes=config.max_request_text_bytes,
        )
        self._wants_outcomes = "on_request_complete" in module.exports
        self._state = EMPTY_STATE
        self._answers: dict[bytes, Answer] = {}
        self._last_now_ms = 0
        self._instance: Instance | None = None
        self._try_out()
        self._instance = Instance(sandbox)  # the one tried out may have learnt from the trial

    def select_worker(self, workers: WorkerView, request: RequestView) -> int | None:
        """Ask the plugin. Raises DecisionError; the state is then as it was before."""
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
            instance = self._live_instance()
            instance.on_request_complete(payload, self._last_now_ms)
        except DecisionError as error:
            self._count(error)
        if self._instance is not None and self._instance.poisoned:
            self._instance = None

    def _decide(self, workers: WorkerView, request: RequestView) -> int | None:
        self._last_now_ms = now_ms = request.now_ms
        payload = self._encoder.encode_request(workers, request, self._state)
        instance = self._instance or self._live_instance()
        try:
            result = instance.select_worker(payload, now_ms, request.entropy)
        finally:
            if instance.poisoned:
                self._instance = None
        if instance.late_failure is not None:
            self._count(instance.late_failure)
        answer = self._answers.get(result)
        if answer is None:
            answer = self._read(result)
        index, patch = answer
        healthy = workers.healthy
        if index is not None and not (0 <= index < len(healthy) and healthy[index]):
            raise self._misjudged(index, workers)
        if patch is not None:
            self._state = self._state.merged(self.name, patch)
        return index

    def _read(self, result: bytes) -> Answer:
        """Decode a result, once for all that are the same where it has no state."""
        answer = decode_answer(self.name, result)
        if (
            answer[1] is None
            and len(result) <= MAX_KEPT_ANSWER_BYTES
            and len(self._answers) < MAX_KEPT_ANSWERS
        ):
            self._answers[result] = answer
        return answer

    def _misjudged(self, index: int, workers: WorkerView) -> DecisionError:
        if 0 <= index < len(workers):
            return DecisionError(
                self.name, "unhealthy_pick", f"selected_worker is {index}: {workers[index]!r}"
            )
        return DecisionError(
            self.name, "out_of_range", f"selected_worker is {index} of {len(workers)} workers"
        )

    def _live_instance(self) -> Instance:
        if self._instance is None:
            self._instance = Instance(self._sandbox)
        return self._instance

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
