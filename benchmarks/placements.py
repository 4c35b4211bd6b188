"""What it takes to place one request: `Dispatcher` alone, by policy and number of workers.

No sockets and no engines. Requests stay in flight, so that loads, prefixes and pending tokens are
what the policy itself makes of them. Single placements are timed, the body's parsing included where
the policy reads it; some 0.1 µs of each is the clock's own.
"""

import random
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from lab import Unavailable
from tables import table
from workload import PATH, chat_bodies, summary, worker_urls

from sgl_router.core.dispatch import Dispatcher
from sgl_router.core.policy import Outcome
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.request import RequestView
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import RouterError
from sgl_router.policies import PolicyFactory

BODY_BYTES = 1100
BODIES = 512
IN_FLIGHT_PER_WORKER = 4


def decision_times(policy_name: str, workers: int, decisions: int) -> dict[str, float]:
    """The times of single placements in µs; raises Unavailable where there is no such policy."""
    factory = PolicyFactory()
    try:
        policy, fallback = factory.create_by_name(policy_name), factory.create_by_name("random")
    except RouterError as error:
        raise Unavailable(str(error)) from error
    if policy is None or fallback is None:
        raise Unavailable("there is no policy of that name")
    registry = WorkerRegistry()
    for url in worker_urls([8001, 8002, 8003, 8004], workers):
        registry.add(Worker(url, Health.UP))
    draw, clock = random.Random(0), time.perf_counter_ns
    dispatcher = Dispatcher(
        registry,
        policy,
        fallback,
        entropy=lambda: draw.getrandbits(53),
        now_ms=lambda: time.time_ns() // 1_000_000,
        clock_ns=clock,
    )
    bodies = chat_bodies(BODIES, BODY_BYTES)
    in_flight = deque(
        dispatcher.dispatch(RequestView(f"r{i}", PATH, bodies[i % len(bodies)]))
        for i in range(IN_FLIGHT_PER_WORKER * workers)
    )
    times = []
    for i in range(decisions):
        done = in_flight.popleft()
        dispatcher.complete(done, Outcome(done.worker.url, True, 200, 20.0, 100.0, 1, None))
        request = RequestView(f"r{i}", PATH, draw.choice(bodies))
        started = clock()
        decision = dispatcher.dispatch(request)
        times.append((clock() - started) / 1000)
        in_flight.append(decision)
    factory.close()
    return summary(times)


def measure_decisions(decisions: int, pools: Sequence[int]) -> dict[str, Any]:
    """Every built-in policy on pools of these sizes: prints a table, returns its figures."""
    factory = PolicyFactory()
    names = factory.list_builtin_policies()
    factory.close()
    found: dict[str, Any] = {}
    for name in names:
        for workers in pools:
            try:
                decision_times(name, workers, decisions // 10)  # warms up
                times = decision_times(name, workers, decisions)
            except Unavailable as error:
                print(f"{name}: not available: {error}.\n")
                break
            found.setdefault(name, {})[str(workers)] = times
    head = [
        f"One decision, µs, {decisions:,} each",
        *(f"{workers:,} workers {share}" for workers in pools for share in ("p50", "p99")),
    ]
    rows = [
        [name, *(f"{row[str(w)][share]:.1f}" for w in pools for share in ("p50", "p99"))]
        for name, row in found.items()
    ]
    print(table(head, rows) + "\n")
    return found
