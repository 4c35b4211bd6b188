"""The guest of one version of a plugin: its instance, made anew where that is needed."""

import time
from typing import Any

from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry, WorkerView
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import DecisionError
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE
from sgl_router.wasm.contract import contract_for
from sgl_router.wasm.instance import Instance
from sgl_router.wasm.sandbox import Sandbox
from sgl_router.wasm.status import SelfTest

TimedAnswer = tuple[Any, float, DecisionError | None]
"""Of a contract, the milliseconds that it took, and what failed after it."""


class Guest:
    """See the module. It has one user at a time: the event loop, or the plugin's own thread.

    Attributes:
        contract: encodes what the guest is asked, and judges its answers.
        wants_outcomes: whether it is to be told how requests end.
        instances: how many it has had.
        instance: the live one, or None: the next call makes one.
        late_failure: of a call of `decide`, one that came after the decision had been taken; to be
            taken out.
    """

    def __init__(self, sandbox: Sandbox) -> None:
        self.contract = contract_for(sandbox.module, sandbox.config)
        self.wants_outcomes = "on_request_complete" in sandbox.module.exports
        self.instances = 0
        self.instance: Instance | None = None
        self.late_failure: DecisionError | None = None
        self._sandbox = sandbox
        self._per_call = sandbox.config.isolation == "per_call"

    def decide(self, workers: WorkerView, request: RequestView, limit_ms: float) -> int | None:
        """A decision at once. Raises DecisionError."""
        instance = self.instance
        if instance is None:
            instance = self._started(limit_ms)
        try:
            return self.contract.decide(instance, workers, request, limit_ms)
        finally:
            if instance.poisoned or instance.driver.pages >= instance.worn_pages:
                self.instance = None
                self.late_failure = instance.late_failure

    def answer(self, payload: Any, now_ms: int, entropy: int, limit_ms: float) -> TimedAnswer:
        """The answer to what the contract has encoded before. Raises DecisionError."""
        started = time.perf_counter()
        instance = self._started(limit_ms)
        try:
            answer = self.contract.ask_later(instance, payload, now_ms, entropy, limit_ms)
        finally:
            if instance.poisoned or instance.driver.pages >= instance.worn_pages:
                self.instance = None
        return answer, (time.perf_counter() - started) * 1000, instance.late_failure

    def report(self, payload: Any, now_ms: int, limit_ms: float) -> float:
        """Tell it how a request has ended (`Contract.encode_outcome`).

        Returns the milliseconds that it took. Raises DecisionError.
        """
        started = time.perf_counter()
        instance = self._started(limit_ms)
        try:
            instance.on_request_complete(payload, now_ms, limit_ms)
        finally:
            if instance.poisoned or instance.driver.pages >= instance.worn_pages:
                self.instance = None
        return (time.perf_counter() - started) * 1000

    def encode_outcome(self, outcome: Outcome) -> Any:
        """What `report` takes."""
        return self.contract.encode_outcome(outcome)

    def start(self, limit_ms: float) -> None:
        """Have an instance ready, where one is kept. Raises DecisionError."""
        if not self._per_call:
            self._started(limit_ms).spent_ms = 0.0  # no request has waited for it

    def try_out(self, limit_ms: float) -> SelfTest:
        """One decision between two made-up workers; reporting an error itself is no failure.

        Nothing of it is left. Raises DecisionError.
        """
        registry = WorkerRegistry()
        for port in (1, 2):
            registry.add(Worker(f"http://127.0.0.1:{port}", Health.UP))
        request = RequestView("self-test", "/v1/chat/completions")
        index, said = None, None
        self._started(limit_ms)  # an error by which it refuses to start is a failure
        started = time.perf_counter()
        try:
            index = self.decide(registry.view(), request, limit_ms)
        except DecisionError as error:
            if error.kind != "plugin_error":
                raise
            said = error.detail
        elapsed = time.perf_counter() - started
        self.instance = None  # it may have learnt from the trial
        self.contract.close()
        self.contract.state = EMPTY_STATE
        return SelfTest(index, round(elapsed * 1e6, 1), said)

    def _started(self, limit_ms: float) -> Instance:
        """The instance; what making it takes of the limit, its first call has less.

        Raises DecisionError.
        """
        instance = self.instance
        if instance is not None:
            return instance
        started = time.perf_counter()
        instance = self.instance = Instance(self._sandbox, limit_ms)
        if self._per_call:
            instance.worn_pages = 0  # by its first call
        self.instances += 1
        instance.spent_ms = (time.perf_counter() - started) * 1000
        return instance
