"""The pool and the views that decisions get of it."""

import pytest

from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Circuit, Health, Role, Worker
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


# ---- breakers


@pytest.mark.parametrize(
    ("circuit", "probing", "eligible"),
    [
        (Circuit.CLOSED, False, (0, 1, 2, 3)),
        (Circuit.OPEN, False, (0, 2, 3)),
        (Circuit.HALF_OPEN, False, (0, 1, 2, 3)),
        (Circuit.HALF_OPEN, True, (0, 2, 3)),
    ],
)
def test_a_breaker_holds_a_worker_back(
    circuit: Circuit, probing: bool, eligible: tuple[int, ...]
) -> None:
    registry, workers = pool()
    before = registry.view()
    registry.set_circuit(workers[1], circuit, probing=probing)
    assert registry.view().eligible == eligible
    assert before.eligible == (0, 1, 2, 3)


# ---- roles and models


def mixed() -> tuple[WorkerRegistry, dict[str, Worker]]:
    """Workers by name, of several roles and models; those of no model serve any."""
    registry = WorkerRegistry()
    roles: dict[str, tuple[Role, str | None]] = {
        "llama": ("regular", "llama"),
        "qwen": ("regular", "qwen"),
        "any": ("regular", None),
        "llama-2": ("regular", "llama"),
        "prefill": ("prefill", None),
        "decode-qwen": ("decode", "qwen"),
        "decode": ("decode", None),
    }
    workers = {
        name: Worker(f"http://{name}", Health.UP, role=role, model_id=model)
        for name, (role, model) in roles.items()
    }
    for worker in workers.values():
        registry.add(worker)
    return registry, workers


@pytest.mark.parametrize(
    ("role", "model", "names"),
    [
        ("regular", "llama", ["llama", "any", "llama-2"]),
        ("regular", "qwen", ["qwen", "any"]),
        ("regular", "unheard of", ["any"]),
        ("regular", None, ["llama", "qwen", "any", "llama-2"]),
        ("prefill", "qwen", ["prefill"]),
        ("decode", "qwen", ["decode-qwen", "decode"]),
        ("decode", "llama", ["decode"]),
    ],
)
def test_who_serves_a_model_in_a_role(role: Role, model: str | None, names: list[str]) -> None:
    registry, workers = mixed()
    view = registry.view(role=role, model=model)
    assert list(view) == [workers[name] for name in names]
    assert registry.view(role=role, model=model) is view


def test_the_models_are_those_that_workers_are_declared_to_serve() -> None:
    assert pool()[0].models == frozenset()
    registry, workers = mixed()
    assert registry.models == {"llama", "qwen"}
    registry.remove(workers["qwen"])
    assert registry.models == {"llama", "qwen"}  # one that decodes it is left
    registry.remove(workers["decode-qwen"])
    assert registry.models == {"llama"}


def test_names_that_clients_think_of_share_one_view() -> None:
    registry, _ = mixed()
    view = registry.view(model="unheard of")
    assert registry.view(model="another") is view
    assert registry.view(model="x" * 1000) is view


def test_a_view_says_which_pool_it_is_of() -> None:
    registry, workers = mixed()
    assert registry.view(model="llama").pool == ("regular", "llama")
    assert registry.view(role="decode").pool == ("decode", None)
    assert registry.view(model="unheard of").pool == ("regular", "")
    assert registry.view(frozenset({workers["any"]}), model="llama").pool == ("regular", "llama")


def test_an_excluded_worker_is_excluded_in_the_view_of_its_model() -> None:
    registry, workers = mixed()
    view = registry.view(frozenset({workers["any"]}), model="qwen")
    assert (list(view), view.eligible) == ([workers["qwen"], workers["any"]], (0,))


def test_a_worker_that_is_given_another_model_is_found_there() -> None:
    registry, workers = mixed()
    before = registry.view(model="llama")
    workers["qwen"].model_id = "llama"
    registry.changed()
    assert workers["qwen"] in registry.view(model="llama")
    assert workers["qwen"] not in before


# ---- coming and going


def test_a_removed_worker_is_gone_and_its_url_free() -> None:
    registry, workers = pool()
    registry.remove(workers[1])
    assert list(registry.view()) == [workers[0], *workers[2:]]
    assert registry.get(URLS[1]) is None
    again = Worker(URLS[1], Health.UP)
    registry.add(again)
    assert list(registry.view()) == [workers[0], *workers[2:], again]


def test_workers_are_found_by_url_and_by_id() -> None:
    registry, workers = pool()
    assert registry.get(URLS[2]) is workers[2]
    assert registry.get("http://unknown") is None
    assert registry.by_id(workers[2].id) is workers[2]
    assert registry.by_id("unknown") is None


def test_those_who_asked_are_told_of_each_that_comes_or_goes() -> None:
    registry, told = WorkerRegistry(), list[tuple[str, Worker, int]]()
    registry.on_add.append(lambda worker: told.append(("add", worker, len(registry))))
    registry.on_remove.append(lambda worker: told.append(("remove", worker, len(registry))))
    worker = Worker(URLS[0])
    registry.add(worker)
    with pytest.raises(ConfigError):
        registry.add(Worker(URLS[0]))
    registry.remove(worker)
    assert told == [("add", worker, 1), ("remove", worker, 0)]
