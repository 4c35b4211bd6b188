"""Options of other routers: each is here, or is refused with a reason."""

import json
import re
from pathlib import Path

import pytest

from sgl_router.config.flags import launch_flags
from sgl_router.config.options import OPTIONS, flag_of, variable_of
from sgl_router.config.refused import REFUSED
from sgl_router.errors import ConfigError
from tests.config.support import complaint, load

PEERS: dict[str, list[str]] = json.loads(
    (Path(__file__).parent / "peer_options.json").read_text("utf-8")
)
"""The flags that each router's parser has, aliases and hidden ones included, but for --help."""


def name_of(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


@pytest.mark.parametrize("peer", PEERS)
def test_no_option_of_a_peer_is_unknown(peer: str) -> None:
    names = {name_of(flag) for flag in PEERS[peer]}
    assert len(names) > 60, "there is something to compare"
    assert sorted(names - OPTIONS.keys() - REFUSED.keys()) == []


def test_what_is_refused_is_a_peers_and_not_ours() -> None:
    theirs = {name_of(flag) for flags in PEERS.values() for flag in flags}
    assert sorted(REFUSED.keys() - theirs) == []
    assert sorted(REFUSED.keys() & OPTIONS.keys()) == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_reason_says_what_to_do_in_one_sentence(name: str) -> None:
    why = REFUSED[name]
    assert len(why) > 20
    reason, _, advice = why.partition(": ")
    assert reason
    assert advice
    assert not re.search(r"\.( |$)", why)
    for flag in re.findall(r"--[a-z][a-z-]+", why):
        assert flag in launch_flags(), f"{flag} is an option"
        assert name_of(flag) in OPTIONS, f"{flag} is taken"


def test_each_connector_of_vllm_router_is_told_what_becomes_of_it() -> None:
    # Of Mooncake and MoRI-IO, ids and addresses are asked first, which is not done here.
    for connector in ("nixl", "mooncake", "moriio"):
        assert connector in REFUSED["kv_connector"]


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_as_flag_key_and_variable(name: str, tmp_path: Path) -> None:
    flag = flag_of(name)
    for arguments in ((flag,), (flag, "some", "words"), (f"{flag}=value",), (flag, "--port", "1")):
        said = complaint(*arguments)
        assert said is not None
        assert f"{flag} " in said
        assert REFUSED[name] in said
    file = tmp_path / "router.yaml"
    file.write_text(f"{name}: 1\n")
    with pytest.raises(ConfigError) as in_file:
        load("--config", str(file))
    with pytest.raises(ConfigError) as in_environment:
        load(environment={variable_of(name): "1"})
    for error, place in ((in_file, str(file)), (in_environment, variable_of(name))):
        assert REFUSED[name] in str(error.value)
        assert place in str(error.value)


def test_all_that_is_refused_is_told_at_once() -> None:
    said = complaint("--mini-lb", "--port", "1", "--log-dir", "/tmp", "--mini-lb", "--worker-url")
    assert said is not None
    assert said.count("--mini-lb") == 1
    for part in ("--log-dir", REFUSED["log_dir"], "--worker-url ", "--worker-urls"):
        assert part in said


def test_one_reason_is_told_once() -> None:
    said = complaint("--redis-url", "a", "--oracle-username", "b", "--mini-lb")
    assert said is not None
    assert said.count(REFUSED["redis_url"]) == 1
    assert "--redis-url" in said
    assert "--oracle-username" in said


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("--worker-url", "--worker-urls"),
        ("--worker_urls", "--worker-urls"),
        ("--Port", "--port"),
        ("-port", "--port"),
        ("--max-concurrent-request=7", "--max-concurrent-requests"),
        ("--disable-retry", "--disable-retries"),
        ("--conf", "--config"),
        ("--service-discover", "--service-discovery"),
    ],
)
def test_what_is_unknown_has_a_nearest(word: str, nearest: str) -> None:
    said = complaint(word)
    assert said is not None
    assert word.partition("=")[0] + " " in said
    assert f" {nearest}" in said


def test_what_is_near_nothing_is_still_named() -> None:
    said = complaint("--xyzzyq")
    assert said is not None
    assert "--xyzzyq" in said
    assert "nearest" not in said


def test_words_that_belong_nowhere_are_refused() -> None:
    assert "'http://a'" in (complaint("http://a") or "")
    assert complaint("--", "x") is not None
    assert complaint("-5") is not None
    assert complaint("--port", "1", "--worker-urls", "http://a") is None
