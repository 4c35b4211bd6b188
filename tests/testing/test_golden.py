"""Golden decisions: how they are read, how a plugin is asked, and what counts as a difference."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from sgl_router.errors import ConfigError
from sgl_router.policies import shipped_plugins
from sgl_router.testing import (
    Answer,
    DecisionCase,
    GoldenResult,
    PluginHost,
    golden_folder,
    load_golden,
    run_golden,
)
from tests.testing.guests import holds, sound, sound_table, traps_on
from tests.testing.test_case import PLAIN
from tests.wasm.guests import guest

HostOf = Callable[..., PluginHost]
EXAMPLES = Path(__file__).parents[2] / "examples" / "wasm_plugins"

REPORTS = '{"selected_worker": null, "error": "no weights"}'


def result(host: PluginHost, folder: Path, output: dict[str, Any], **given: object) -> GoldenResult:
    """What comes of one golden decision, from its file on."""
    said = {"description": "of a test", "input": {**PLAIN, **given}, "output": output}
    (folder / "one.json").write_bytes(orjson.dumps(said))
    (golden,) = load_golden(folder)
    return run_golden(host, golden)


def outcome(host: PluginHost, folder: Path, output: dict[str, Any], **given: object) -> str:
    return result(host, folder, output, **given).outcome


@pytest.mark.parametrize("plugin", shipped_plugins())
def test_the_shipped_plugins_pass_theirs(plugin: str, host_of: HostOf) -> None:
    host = host_of(shipped_plugins()[plugin].read_bytes())
    golden = load_golden(EXAMPLES / plugin / "tests")
    results = [run_golden(host, one) for one in golden]
    assert results, "there are some"
    assert {one.outcome for one in results} == {"passed"}, results


def test_the_worker_is_compared(host_of: HostOf, tmp_path: Path) -> None:
    host = host_of(sound())
    assert outcome(host, tmp_path, {"selected_worker": 0}) == "passed"
    failed = result(host, tmp_path, {"selected_worker": 1})
    assert failed.outcome == "failed"
    assert "expected 1" in failed.problems[0] and "found 0" in failed.problems[0]
    assert outcome(host, tmp_path, {"selected_worker": None}) == "failed"


def test_keys_that_are_absent_are_not_compared(host_of: HostOf, tmp_path: Path) -> None:
    assert outcome(host_of(sound(state='{"n": 1}')), tmp_path, {"error": None}) == "passed"
    assert outcome(host_of(guest(REPORTS)), tmp_path, {"selected_worker": None}) == "passed"


def test_the_state_is_what_is_merged(host_of: HostOf, tmp_path: Path) -> None:
    host = host_of(sound(state='{"n": 1, "last": null}'))
    assert outcome(host, tmp_path, {"state": {"n": 1, "last": None}}) == "passed"
    assert outcome(host, tmp_path, {"state": {"n": 1}}) == "failed"
    assert outcome(host, tmp_path, {"state": None}) == "failed"
    assert outcome(host, tmp_path, {"state": {"n": 1.0, "last": None}}) == "failed"
    assert outcome(host_of(sound()), tmp_path, {"state": None}) == "passed"


def test_errors_are_the_plugins_own(host_of: HostOf, tmp_path: Path) -> None:
    reports, traps = host_of(guest(REPORTS)), host_of(traps_on("llama"))
    assert outcome(reports, tmp_path, {"error": True}) == "passed"
    assert outcome(reports, tmp_path, {"error": "no weights"}) == "passed"
    assert outcome(reports, tmp_path, {"error": "other"}) == "failed"
    assert outcome(reports, tmp_path, {"error": None}) == "failed"
    assert outcome(traps, tmp_path, {"error": True}) == "failed"
    assert outcome(traps, tmp_path, {"selected_worker": None}) == "failed"
    assert outcome(host_of(sound()), tmp_path, {"error": True}) == "failed"


def test_a_choice_that_a_router_would_not_follow_fails(host_of: HostOf, tmp_path: Path) -> None:
    failed = result(host_of(guest('{"selected_worker": 1}')), tmp_path, {"selected_worker": 1})
    assert failed.outcome == "failed"
    assert "unhealthy_pick" in failed.problems[0]


def test_the_configuration_is_the_cases(host_of: HostOf, tmp_path: Path) -> None:
    needle = '"config":{"a":2}'
    picky = sound(f"(if {holds(len(needle))} (then unreachable))", needle=needle)
    host = host_of(picky, config={"a": 2})
    assert outcome(host, tmp_path, {"selected_worker": 0}, config={"a": 1}) == "passed"
    assert outcome(host, tmp_path, {"selected_worker": 0}, config={"a": 2}) == "failed"


def test_needs_hold_as_on_a_router(host_of: HostOf, tmp_path: Path) -> None:
    """What the manifest does not ask for is not told, whatever the file says."""
    workers = [{**PLAIN["workers"][0], "pending_tokens": 12_345}]
    wasm = traps_on("12345")
    assert outcome(host_of(wasm), tmp_path, {"selected_worker": 0}, workers=workers) == "passed"
    manifest = b'{"needs": ["pending_tokens"]}'
    needle = '"pending_tokens":12345'
    asks = sound(f"(if {holds(len(needle))} (then unreachable))", needle=needle, manifest=manifest)
    assert outcome(host_of(asks), tmp_path, {"selected_worker": 0}, workers=workers) == "failed"


def test_what_no_router_says_reaches_a_plugin_of_the_json_abi(
    host_of: HostOf, tmp_path: Path
) -> None:
    host = host_of(traps_on("sgl_later"))
    assert outcome(host, tmp_path, {"selected_worker": 0}) == "passed"
    assert outcome(host, tmp_path, {"selected_worker": 0}, sgl_later=1) == "failed"


def test_what_the_table_abi_cannot_say_is_skipped(host_of: HostOf, tmp_path: Path) -> None:
    host = host_of(sound_table())
    assert outcome(host, tmp_path, {"selected_worker": 0}, later=1) == "passed"
    workers = [{**PLAIN["workers"][0], "load": "three"}]
    skipped = result(host, tmp_path, {"error": True}, workers=workers)
    assert skipped.outcome == "skipped"
    assert "workers[0].load" in skipped.problems[0]


def test_each_is_asked_on_two_new_instances(host_of: HostOf, tmp_path: Path) -> None:
    """An instance that could not decide twice would fail otherwise."""
    once = sound(
        "(if (global.get $calls) (then unreachable)) (global.set $calls (i32.const 1))",
    )
    host = host_of(once)
    assert outcome(host, tmp_path, {"selected_worker": 0}) == "passed"
    assert outcome(host, tmp_path, {"selected_worker": 0}) == "passed"


def test_instances_that_disagree_fail(
    host_of: HostOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_of(sound())
    other = host_of(guest('{"selected_worker": null}'))
    turns = [host.decide, other.decide]

    def decide(case: DecisionCase) -> Answer:
        return turns.pop(0)(case)

    monkeypatch.setattr(host, "decide", decide)
    failed = result(host, tmp_path, {"selected_worker": 0})
    assert failed.outcome == "failed"
    assert "disagree" in failed.problems[0]


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"input": {}}',
        '{"output": {"selected_worker": 0}}',
        '{"input": {}, "output": {}}',
        '{"input": {}, "output": {"worker": 0}}',
        '{"input": {}, "output": {"selected_worker": "0"}}',
        '{"input": {}, "output": {"selected_worker": true}}',
        '{"input": {}, "output": {"state": 5}}',
        '{"input": {}, "output": {"error": false}}',
    ],
)
def test_a_file_that_holds_none_is_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "broken.json").write_text(content)
    with pytest.raises(ConfigError, match=r"broken\.json"):
        load_golden(tmp_path)


def test_no_folder_is_no_golden_decisions(tmp_path: Path) -> None:
    assert load_golden(tmp_path / "tests") == []


def test_where_they_are_looked_for(tmp_path: Path) -> None:
    assert golden_folder(tmp_path / "one.wasm") == tmp_path / "tests"
    built = tmp_path / "build" / "one.wasm"
    assert golden_folder(built) == tmp_path / "build" / "tests"
    (tmp_path / "plugin.toml").touch()
    assert golden_folder(built) == tmp_path / "tests"


def test_hostile_files_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    deep = b'{"a":' * 900 + b"1" + b"}" * 900
    hostile = [
        b'{"input":{"state":%b},"output":{"error":true}}' % deep,
        b'{"input":{},"output":{"state":%b}}' % deep,
        orjson.dumps({"input": {"workers": [{}] * 10_001}, "output": {"error": True}}),
    ]
    for content in hostile:
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"one\.json"):
            load_golden(tmp_path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"one\.json"):
        load_golden(tmp_path)
