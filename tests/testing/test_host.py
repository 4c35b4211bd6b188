"""The host that plugins are tried in, and what is public of the package."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

import sgl_router.testing
from sgl_router.core.policy import Outcome
from sgl_router.errors import ConfigError, DecisionError, PluginRefused
from sgl_router.policies import shipped_plugins
from sgl_router.testing import CaseRequest, DecisionCase, PluginHost, TokenMatch, settings_for
from sgl_router.testing.pools import case, pool
from sgl_router.wasm.runtime import WasmRuntime
from tests.testing.guests import LISTENS, sound, sound_table, traps_on
from tests.wasm.guests import guest

HostOf = Callable[..., PluginHost]


def test_what_is_named_is_there() -> None:
    for name in sgl_router.testing.__all__:
        assert getattr(sgl_router.testing, name).__module__.startswith("sgl_router.")
    with pytest.raises(AttributeError, match="nothing_of_it"):
        importlib.import_module("sgl_router.testing").nothing_of_it  # noqa: B018


def test_a_decision(host_of: HostOf) -> None:
    answer = host_of(sound(state='{"n": 1}')).decide(case(pool(3, down=(0,)), state={"m": 2}))
    assert answer.selected_worker == 1
    assert answer.state == {"m": 2, "n": 1}
    assert answer.failure is None and answer.error is None
    assert answer.memory_bytes == 8 * 65_536
    assert answer.elapsed_us > 0
    assert str(answer) == "worker 1"


def test_a_failure_leaves_the_state(host_of: HostOf) -> None:
    host = host_of(traps_on("u42"))
    answer = host.decide(case(pool(1), state={"m": 2}))
    assert answer.selected_worker is None
    assert answer.failure is not None and answer.failure.kind == "trap"
    assert answer.state == {"m": 2}
    assert answer.error is None
    assert host.decide(case(pool(1), session="u1")).selected_worker == 0


def test_an_error_of_the_plugins_own(host_of: HostOf) -> None:
    answer = host_of(guest('{"error": "no weights"}')).decide(case(pool(1)))
    assert answer.error == "no weights"
    assert str(answer) == "plugin_error: no weights"


def test_no_worker(host_of: HostOf) -> None:
    assert str(host_of(sound()).decide(case(pool(2, down=(0, 1))))) == "no worker"


def test_a_configuration_needs_no_compiling(host_of: HostOf) -> None:
    host = host_of(traps_on('"config":{"a":2}'))
    assert host.decide(case(pool(1))).selected_worker == 0
    host.start({"a": 2})
    assert host.config == {"a": 2}
    assert host.decide(case(pool(1))).failure is not None
    host.start()
    assert host.config == {}
    assert host.decide(case(pool(1))).selected_worker == 0


def test_outcomes(host_of: HostOf) -> None:
    outcome = Outcome("http://10.0.0.1:1", True, 200, 1.0, 2.0, 3, None)
    host = host_of(sound(extra=LISTENS))
    assert host.wants_outcomes
    assert host.complete(outcome) is None
    assert not host_of(sound()).wants_outcomes
    trap = '(func (export "on_request_complete") (param i32 i32) unreachable)'
    failure = host_of(sound(extra=trap)).complete(outcome)
    assert failure is not None and failure.kind == "trap"


def test_instances(host_of: HostOf) -> None:
    host = host_of(sound())
    assert host.instances == 1
    host.decide(case(pool(1)))
    assert host.instances == 1
    host.renew()
    host.decide(case(pool(1)))
    assert host.instances == 2
    host.start()
    assert host.instances == 1


def test_a_module_that_is_refused(host_of: HostOf) -> None:
    with pytest.raises(PluginRefused, match="max_memory_bytes"):
        host_of(sound(pages=17))
    with pytest.raises(DecisionError, match="unreachable"):
        host_of(sound(init="unreachable"))


def test_a_host_of_a_file_with_an_engine_of_its_own(tmp_path: Path) -> None:
    path = shipped_plugins()["least_connections"]
    with PluginHost(path, settings_for(path)) as host:
        assert host.select(pool(2), case(pool(2)).request) in (0, 1)
        assert host.settings.name == "least_connections"
    with pytest.raises(PluginRefused, match="nowhere"):
        PluginHost(tmp_path / "nowhere.wasm", settings_for(tmp_path / "nowhere.wasm"))


def test_the_lane(host_of: HostOf) -> None:
    assert host_of(sound()).lane == "inline"
    assert host_of(sound_table()).lane == "inline"
    assert host_of(sound(), allowed_syscalls=["wasi:filesystem"]).lane == "offload"


def test_what_each_worker_holds_of_the_prompt(wasm_runtime: WasmRuntime) -> None:
    manifest = b'{"needs": ["prefix_match", "pending_tokens"]}'
    host = PluginHost(sound(manifest=manifest), settings_for(Path("mine.wasm")), wasm_runtime)
    assert host.needs == {"prefix_match", "pending_tokens"}
    workers = pool(2)
    request = CaseRequest(prompt_tokens=9)
    request.prefix = TokenMatch({workers[1]: 7})
    assert request.prompt_tokens == 9
    assert request.prefix.of(workers[0]) == 0
    assert host.decide(DecisionCase(workers, request)).selected_worker == 0


def test_an_unknown_setting_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="max_memory'"):
        settings_for(Path("mine.wasm"), {"max_memory": 1})
    with pytest.raises(ConfigError, match="name"):
        settings_for(Path("mine.wasm"), {"name": "other"})


def test_settings_go_before_those_of_the_project(tmp_path: Path) -> None:
    (tmp_path / "plugin.toml").write_text(
        "[settings]\nmax_memory_bytes = 5\nallowed_syscalls = ['wasi:random']\n"
    )
    module = tmp_path / "build" / "mine.wasm"
    found = settings_for(module, {"max_memory_bytes": 7})
    assert (found.name, found.max_memory_bytes) == ("mine", 7)
    assert found.allowed_syscalls == ("wasi:random",)
    assert settings_for(tmp_path / "mine.wasm").allowed_syscalls == ()
    for broken in ("settings = 5", "["):
        (tmp_path / "plugin.toml").write_text(broken)
        with pytest.raises(ConfigError, match=r"plugin\.toml"):
            settings_for(module)


def test_answers_are_the_same_whatever_time_they_took(host_of: HostOf) -> None:
    answer = host_of(sound()).decide(case(pool(1)))
    assert answer.same_as(replace(answer, elapsed_us=0.0, memory_bytes=1))
    assert not answer.same_as(replace(answer, selected_worker=None))
    assert not answer.same_as(replace(answer, state={"n": 1}))
