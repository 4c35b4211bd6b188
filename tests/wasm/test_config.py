"""The settings of a plugin: every limit exactly, every wrong one reported."""

from typing import Any

import pytest

from sgl_router.policies import WasmPolicyConfig
from sgl_router.wasm.config import MAX_CONFIG_BYTES, RESERVED_NAMES
from sgl_router.wasm.grants import GROUPS, granted
from tests.wasm.guests import BUILTIN_NAMES

LIMITS = [
    ("max_execution_time_ms", 30_000, "30,000"),
    ("max_memory_bytes", 100 * 1024 * 1024, "104,857,600"),
    ("max_request_text_bytes", 8 * 1024 * 1024, "8,388,608"),
]


def problems(**settings: Any) -> list[str]:
    config = WasmPolicyConfig(**{"module_path": "p.wasm", "name": "plugin"} | settings)
    return [reason.text for reason in config.problems(BUILTIN_NAMES)]


def test_the_defaults_are_fine() -> None:
    assert problems() == []


@pytest.mark.parametrize(("option", "limit", "shown"), LIMITS)
def test_a_limit_itself_is_allowed_and_one_more_is_not(option: str, limit: int, shown: str) -> None:
    assert problems(**{option: limit}) == []
    assert problems(**{option: 1}) == []
    (problem,) = problems(**{option: limit + 1})
    assert option in problem
    assert f"{limit + 1:,}" in problem
    assert shown in problem


@pytest.mark.parametrize("value", [0, -1, True, False, 100.0, "100", None, [1]])
@pytest.mark.parametrize(("option", "limit", "shown"), LIMITS)
def test_only_whole_positive_numbers_are_limits(
    option: str, limit: int, shown: str, value: object
) -> None:
    (problem,) = problems(**{option: value})
    assert option in problem
    assert repr(value) in problem
    assert shown in problem


@pytest.mark.parametrize("name", ["a", "A-b_9", "x" * 64, "wasm2", "0"])
def test_names_that_are_fine(name: str) -> None:
    assert problems(name=name) == []


@pytest.mark.parametrize(
    "name",
    ["", "x" * 65, "a b", "a.b", "../a", "wasm:a", "a\n", "a\0", "ä", "٣", None, 7, True, ["a"]],
)
def test_names_that_are_not(name: object) -> None:
    (problem,) = problems(name=name)
    assert "name" in problem
    assert repr(name)[:80] in problem
    assert "64" in problem


@pytest.mark.parametrize("name", sorted(RESERVED_NAMES | set(BUILTIN_NAMES)))
def test_reserved_names(name: str) -> None:
    (problem,) = problems(name=name)
    assert repr(name) in problem
    assert "reserved" in problem
    assert "option name" not in problem, "there is none"
    assert "named by its file" in problem


def test_what_is_reserved() -> None:
    assert {"default", "none", "system", "wasm"} == RESERVED_NAMES


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        ((), set()),
        (["wasi:random"], {"wasi_snapshot_preview1.random_get"}),
        (["wasi_snapshot_preview1.fd_write"], {"wasi_snapshot_preview1.fd_write"}),
        (
            ("wasi:clocks", "wasi:random"),
            {
                "wasi_snapshot_preview1.clock_time_get",
                "wasi_snapshot_preview1.clock_res_get",
                "wasi_snapshot_preview1.poll_oneoff",
                "wasi_snapshot_preview1.sched_yield",
                "wasi_snapshot_preview1.random_get",
            },
        ),
    ],
)
def test_what_grants_cover(allowed: list[str], expected: set[str]) -> None:
    assert problems(allowed_syscalls=allowed) == []
    assert granted(allowed) == expected


def test_no_group_grants_sockets() -> None:
    everything = granted(GROUPS)
    assert everything
    assert not [name for name in everything if "sock" in name]


@pytest.mark.parametrize("entry", ["wasi:sockets", "wasi_snapshot_preview1.sock_accept", "socket"])
def test_sockets_are_never_granted(entry: str) -> None:
    (problem,) = problems(allowed_syscalls=[entry])
    assert "allowed_syscalls" in problem
    assert repr(entry) in problem
    assert "never" in problem


@pytest.mark.parametrize(
    "entry", ["wasi:everything", "random_get", "*", "", 7, None, ["wasi:random"]]
)
def test_unknown_grants_are_answered_with_those_there_are(entry: object) -> None:
    (problem,) = problems(allowed_syscalls=[entry])
    assert "allowed_syscalls" in problem
    assert repr(entry) in problem
    assert all(group in problem for group in GROUPS)


@pytest.mark.parametrize("allowed", ["wasi:random", None, 7, {"wasi:random": True}])
def test_grants_are_a_list(allowed: object) -> None:
    (problem,) = problems(allowed_syscalls=allowed)
    assert "allowed_syscalls" in problem
    assert type(allowed).__name__ in problem


@pytest.mark.parametrize("config", [{"a": {1}}, {1: 2}, {"a": "\ud800"}, {"a": object()}, [], "{}"])
def test_a_config_that_is_no_json_object(config: object) -> None:
    (problem,) = problems(config=config)
    assert "--plugin-config" in problem


def test_a_config_that_contains_itself() -> None:
    config: dict[str, object] = {}
    config["self"] = config
    (problem,) = problems(config=config)
    assert "--plugin-config" in problem


def test_a_config_has_a_size() -> None:
    around = len('{"a":""}')
    assert problems(config={"a": "x" * (MAX_CONFIG_BYTES - around)}) == []
    (problem,) = problems(config={"a": "x" * (MAX_CONFIG_BYTES - around + 1)})
    assert "--plugin-config" in problem
    assert f"{MAX_CONFIG_BYTES + 1:,}" in problem
    assert f"{MAX_CONFIG_BYTES:,}" in problem


@pytest.mark.parametrize("fallback", ["plugin", "", None, ["random"]])
def test_the_fallback_is_built_in(fallback: object) -> None:
    (problem,) = problems(fallback=fallback)
    assert "fallback" in problem
    assert repr(fallback) in problem
    assert all(name in problem for name in BUILTIN_NAMES)


def test_everything_wrong_is_reported_at_once() -> None:
    found = problems(
        name="a b",
        max_execution_time_ms=0,
        max_memory_bytes=1 << 40,
        max_request_text_bytes=-1,
        allowed_syscalls=["wasi:sockets", "nonsense"],
        config={"a": {1}},
        fallback="nobody",
    )
    assert len(found) == 8
