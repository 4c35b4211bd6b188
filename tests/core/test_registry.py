"""The pool and the views that decisions get of it."""

import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Health, Worker
from sgl_router.errors import ConfigError

URLS = [f"http://engine-{name}:8000" for name in "cabd"]


def pool(health: Health = Health.UP) -> tuple[WorkerRegistry, list[Worker]]:
    registry = WorkerRegistry()
    workers = [Worker(url, health) for url in URLS]
    for worker in workers:
        registry.add(worker)
    return registry, workers


def test_the_order_is_the_order_of_adding() -> None:
    registry, workers = pool()
    registry.set_health(workers[1], Health.DOWN)
    registry.set_health(workers[1], Health.UP)
    assert list(registry) == workers
    assert list(registry.view()) == workers
    assert [registry.view()[i] for i in range(len(workers))] == workers
    assert registry.view()[1:3] == tuple(workers[1:3])
    assert len(registry) == len(registry.view()) == len(workers)


@pytest.mark.parametrize("again", [URLS[0], URLS[0] + "/"])
def test_a_url_is_added_once(again: str) -> None:
    registry, workers = pool()
    view = registry.view()
    with pytest.raises(ConfigError):
        registry.add(Worker(again))
    assert list(registry) == workers
    assert registry.view() is view


def test_the_view_is_made_once_for_many_decisions() -> None:
    registry, workers = pool()
    view = registry.view()
    workers[0].load += 1
    assert registry.view() is view


def test_a_change_of_health_makes_a_new_view_and_leaves_the_old() -> None:
    registry, workers = pool()
    before = registry.view()
    registry.set_health(workers[2], Health.DOWN)
    after = registry.view()
    assert before.eligible == (0, 1, 2, 3)
    assert after.eligible == (0, 1, 3)
    assert after.healthy == (True, True, False, True)
    assert registry.view() is after


def test_adding_makes_a_new_view() -> None:
    registry, workers = pool()
    before = registry.view()
    late = Worker("http://engine-late:8000", Health.UP)
    registry.add(late)
    assert list(registry.view()) == [*workers, late]
    assert list(before) == workers


@pytest.mark.parametrize("health", list(Health))
def test_who_is_eligible(health: Health) -> None:
    registry, _ = pool(health)
    expected = (0, 1, 2, 3) if health is Health.UP else ()
    assert registry.view().eligible == expected


def test_an_excluded_worker_is_unhealthy_for_that_decision_only() -> None:
    registry, workers = pool()
    registry.set_health(workers[0], Health.DOWN)
    view = registry.view(frozenset({workers[1]}))
    assert list(view) == workers
    assert view.healthy == (False, False, True, True)
    assert view.eligible == (2, 3)
    assert registry.view().eligible == (1, 2, 3)


def test_excluding_everybody_leaves_nobody() -> None:
    registry, workers = pool()
    assert registry.view(frozenset(workers)).eligible == ()


def test_an_empty_pool() -> None:
    view = WorkerRegistry().view()
    assert (len(view), view.eligible, view.healthy) == (0, (), ())


def test_a_change_of_health_ends_the_streak_that_spoke_against_the_old_one() -> None:
    registry, workers = pool()
    workers[0].streak = 2
    registry.set_health(workers[0], Health.DOWN)
    assert workers[0].streak == 0
