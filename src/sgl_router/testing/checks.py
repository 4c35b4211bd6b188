"""The conformance checks; `conformance.py` makes them."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health
from sgl_router.testing.answer import Answer
from sgl_router.testing.case import DecisionCase
from sgl_router.testing.check import Check, Failed, NotForIt, as_json, decided
from sgl_router.testing.checks_given import GIVEN
from sgl_router.testing.host import Host
from sgl_router.testing.pools import (
    MANY_ENTROPIES,
    case,
    masks,
    outcomes,
    pool,
)

SIZES = (1, 2, 8, 64, 512)
DECISIONS = 1_000
"""In a row in which memory must not grow, for it to have found its size."""

MAX_DECISIONS = 5_000
"""In which it has to find it: a garbage-collected heap takes some."""

WINDOW = 500
ALLOWED_GROWTH_BYTES = 2 * 65_536
"""In each window of decisions. What loses less than 256 bytes each time is not found."""

_MEMORY_POOL = 48

_FOREIGN_STATE: Mapping[str, Any] = {
    "sgl_foreign": {"list": [1, 2.5, None, True, {"deep": {"deeper": []}}], "": ""},
    "sgl_foreign_text": "naïve \x00 \U0001f600",
    "sgl_foreign_number": -(2**63),
}


# ---- what it decides ----


def _decides(host: Host) -> None:
    for size in SIZES:
        host.start()
        decided(host.decide(case(pool(size))), f"asked about {size} workers")


def _healthy_only(host: Host) -> None:
    for size in (2, 5, 9):
        for down in masks(size):
            workers = pool(size, down)  # one is eligible at least, or no policy is asked
            for entropy in MANY_ENTROPIES:
                asked = case(workers, entropy=entropy, attempt=len(down))
                up = ", ".join(map(str, workers.eligible))
                decided(host.decide(asked), f"of {size} workers, {up} may be picked")


def _pool_changes(host: Host) -> None:
    registry = WorkerRegistry()
    for worker in pool(3):
        registry.add(worker)
    others = list(pool(17))[3:]
    for worker in others[:9]:
        registry.add(worker)
        decided(host.decide(case(registry.view())), f"a worker came, {len(registry)} are there")
    for worker in list(registry)[::2]:
        registry.remove(worker)
        decided(host.decide(case(registry.view())), f"a worker left, {len(registry)} are there")
    for worker in list(registry):
        if len(registry.view().eligible) > 1:
            registry.set_health(worker, Health.DOWN)
            decided(host.decide(case(registry.view())), "a worker went down")
    for worker in others[9:]:
        registry.add(worker)
        worker.load += 1
        decided(host.decide(case(registry.view())), f"a worker came, {len(registry)} are there")


def _deterministic(host: Host) -> None:
    asked = [case(pool(6, (2,)), entropy=entropy) for entropy in MANY_ENTROPIES]
    first = [host.decide(one) for one in asked]
    host.start()
    for one, before in zip(asked, first, strict=True):
        _agree(one, before, host.decide(one), "two instances, each asked the same in this order")
    if host.abi == "table_v1":
        return  # its state is in its memory, and may count
    for one, before in zip(asked, first, strict=True):
        _agree(one, before, host.decide(one), "one instance, asked the same again")


def _agree(asked: DecisionCase, before: Answer, after: Answer, what: str) -> None:
    if not before.same_as(after):
        raise Failed(
            f"{what}, with the entropy {asked.request.entropy}, answered differently: "
            f"{before}, state {as_json(before.state)}; then {after}, state {as_json(after.state)}"
        )


# ---- what it keeps ----


def _foreign_state(host: Host) -> None:
    if host.abi == "table_v1":
        raise NotForIt("a plugin of the table ABI is given no state")
    workers = pool(3)
    decided(host.decide(case(workers)), "a state that is {}")
    asked = case(workers, state=dict(_FOREIGN_STATE))
    decided(host.decide(asked), "a state that another version has left")


def _memory(host: Host) -> None:
    if host.per_call:
        raise NotForIt("each decision has an instance of its own (isolation: per_call)")
    highest, quiet = [_window(host, 0)], 0
    for start in range(WINDOW, MAX_DECISIONS, WINDOW):
        highest.append(_window(host, start))
        quiet = quiet + WINDOW if highest[-1] - highest[-2] <= ALLOWED_GROWTH_BYTES else 0
        if quiet >= DECISIONS:
            return
    sizes = ", ".join(f"{size:,}" for size in highest)
    raise Failed(f"its memory does not stop to grow: bytes after each {WINDOW:,} decisions {sizes}")


def _window(host: Host, start: int) -> int:
    """Take some decisions; the most memory that the guest has had then."""
    workers = pool(_MEMORY_POOL)
    highest = 0
    for number in range(start, start + WINDOW):
        answer = decided(
            host.decide(case(workers, entropy=number * 7_919)), f"decision {number + 1:,} in a row"
        )
        if answer.late is not None:
            raise NotForIt("its instances do not last; see frees_results")
        highest = max(highest, answer.memory_bytes)
        if host.instances > 1:
            raise Failed(
                f"after {number + 1:,} decisions among {_MEMORY_POOL} workers its memory was full "
                f"to three quarters of max_memory_bytes, and its instance was replaced"
            )
    return highest


def _frees_results(host: Host) -> None:
    if host.abi != "json_v1":
        raise NotForIt("the host frees results in the JSON ABI only")
    for size in (1, 30):
        answer = decided(host.decide(case(pool(size))), f"asked about {size} workers")
        if answer.late is not None:
            said = "\n".join(answer.late.lines())
            raise Failed(f"it fails when its result or its input is freed (dealloc): {said}")


def _outcomes(host: Host) -> None:
    if not host.wants_outcomes:
        asks = (
            "its manifest has no outcomes in needs"
            if host.abi == "component_v1"
            else "it exports no on_request_complete"
        )
        raise NotForIt(f"it is not told of outcomes: {asks}")
    workers = pool(3)
    decided(host.decide(case(workers)), "before the first outcome")
    for outcome in outcomes():
        failure = host.complete(outcome)
        if failure is not None:
            said = "\n".join(failure.lines())
            raise Failed(f"told of status {outcome.status}, error {outcome.error!a}: {said}")
        decided(host.decide(case(workers)), f"after an outcome of status {outcome.status}")


def _after_failure(host: Host) -> None:
    workers = pool(5)
    state: Mapping[str, Any] = {}
    for entropy in MANY_ENTROPIES:
        asked = replace(case(workers, entropy=entropy), state=state)
        state = decided(host.decide(asked), "before another instance takes over").state
    host.renew()
    for entropy in MANY_ENTROPIES:
        asked = replace(case(workers, entropy=entropy), state=state)
        answer = host.decide(asked)
        state = decided(answer, "on an instance that took over with its state").state


CHECKS = (
    Check(
        "decides",
        "It decides, or says that no worker should be picked, among 1, 2, 8, 64 and 512 workers, "
        "all of them healthy.",
        _decides,
    ),
    Check(
        "healthy_only",
        "Of workers it picks one that is healthy, whichever they are and whatever the entropy. "
        "One at least is: where there is none, a router answers without asking.",
        _healthy_only,
    ),
    Check(
        "pool_changes",
        "It keeps deciding while workers come, leave and go down.",
        _pool_changes,
    ),
    Check(
        "deterministic",
        "The same input has the same answer and the same state, on whatever instance.",
        _deterministic,
    ),
    *GIVEN,
    Check(
        "foreign_state",
        "Keys of the state that it does not know, left by another version, make no difference.",
        _foreign_state,
    ),
    Check(
        "memory",
        f"It frees its memory: there are {DECISIONS:,} decisions in a row in which it does not "
        f"grow, among the first {MAX_DECISIONS:,}.",
        _memory,
    ),
    Check(
        "frees_results",
        "dealloc takes back its result and its input, each with the size that it has.",
        _frees_results,
    ),
    Check(
        "outcomes",
        "on_request_complete may not fail, also where status, times and error are null.",
        _outcomes,
    ),
    Check(
        "after_failure",
        "A new instance goes on from the state of the one before, which was thrown away.",
        _after_failure,
    ),
)
"""All but the first, which is that it loads."""
