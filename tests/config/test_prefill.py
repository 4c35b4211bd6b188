"""Prefill and decode engines: every way to give them, and what goes together."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.config import PrefillEngine, RouterConfig
from sgl_router.config.fields import group_prefill, parse_prefill
from sgl_router.errors import ConfigError
from tests.config.support import load

DECODE = ("--pd-disaggregation", "--decode", "http://d:1")


@pytest.mark.parametrize(
    ("words", "port"),
    [
        (["http://p:1", "9000"], 9000),
        (["http://p:1", "none"], None),
        (["http://p:1", "NONE"], None),
        (["http://p:1"], None),
    ],
)
def test_the_forms_of_the_flag(words: list[str], port: int | None) -> None:
    assert load(*DECODE, "--prefill", *words).prefill == (("http://p:1", port),)


def test_several_engines() -> None:
    config = load(
        "--pd-disaggregation", "--prefill", "http://p:1", "9000", "--prefill", "http://p:2",
        "--decode", "http://d:1", "--decode", "http://d:2",
    )  # fmt: skip
    assert config.prefill == (("http://p:1", 9000), ("http://p:2", None))
    assert config.prefill[0].bootstrap_port == 9000
    assert config.decode == ("http://d:1", "http://d:2")


@pytest.mark.parametrize(
    "item",
    [
        '"http://p:1 9000"',
        "{url: http://p:1, bootstrap_port: 9000}",
        '{url: http://p:1, bootstrap_port: "9000"}',
        '["http://p:1", 9000]',
    ],
)
def test_the_forms_in_a_file(tmp_path: Path, item: str) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(f"prefill: [{item}]\n")
    assert load(*DECODE, "--config", str(file)).prefill == (PrefillEngine("http://p:1", 9000),)


@pytest.mark.parametrize(
    "item",
    [
        '"http://p:1 0"', '"http://p:1 65536"', '"http://p:1 +5"', '"http://p:1 ٥"', '""',
        '"http://p:1 1 2"', '"9000"', "9000", "[]", "[http://p, true]", "[http://p, 1.5]",
        "{bootstrap_port: 1}", "{url: http://p, port: 1}", "{url: 7}", "null", "ftp://p",
    ],
)  # fmt: skip
def test_what_is_no_engine_is_named(tmp_path: Path, item: str) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(f"prefill: [http://q, {item}]\n")
    with pytest.raises(ConfigError) as refused:
        load(*DECODE, "--config", str(file))
    assert "prefill[1]" in str(refused.value)
    assert "prefill[0]" not in str(refused.value)


def test_a_port_before_its_url_is_refused() -> None:
    with pytest.raises(ConfigError, match="9000"):
        load(*DECODE, environment={"SGL_ROUTER_PREFILL": "9000 http://p:1"})
    with pytest.raises(ConfigError, match="http://p:1 1 2"):
        load(*DECODE, environment={"SGL_ROUTER_PREFILL": "http://p:1 1 2"})


ENGINES = st.lists(
    st.builds(
        PrefillEngine,
        st.from_regex(r"https?://[a-z]{1,8}(:[1-9][0-9]{0,3})?(/[a-z0-9]{1,4})?", fullmatch=True),
        st.none() | st.integers(1, 65535),
    ),
    min_size=1,
    max_size=6,
)


@given(engines=ENGINES, spell_none=st.booleans())
def test_flags_and_variable_and_file_say_the_same(
    engines: list[PrefillEngine], spell_none: bool
) -> None:
    absent = ["none"] if spell_none else []
    words = [[e.url, *([str(e.bootstrap_port)] if e.bootstrap_port else absent)] for e in engines]
    flags = [word for engine in words for word in ("--prefill", *engine)]
    variable = {"SGL_ROUTER_PREFILL": " ".join(word for engine in words for word in engine)}
    mappings = yaml.safe_load(yaml.safe_dump([engine._asdict() for engine in engines]))
    assert load(*DECODE, *flags).prefill == tuple(engines)
    assert load(*DECODE, environment=variable).prefill == tuple(engines)
    direct = RouterConfig(pd_disaggregation=True, prefill=mappings, decode=("http://d",))
    assert direct.prefill == tuple(engines)


@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    )
)
def test_what_is_given_is_an_engine_or_refused(value: object) -> None:
    try:
        engine = parse_prefill(value)
    except ValueError:
        return
    assert engine.url.lower().startswith(("http://", "https://"))
    assert engine.bootstrap_port is None or 1 <= engine.bootstrap_port <= 65535


@given(words=st.lists(st.sampled_from(["http://a", "7", "none", "x"])))
def test_grouping_loses_no_word(words: list[str]) -> None:
    assert " ".join(group_prefill(words)).split() == words


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--pd-disaggregation"], ["--prefill", "--decode"]),
        (["--pd-disaggregation", "--prefill", "http://p"], ["--decode"]),
        (["--pd-disaggregation", "--decode", "http://d"], ["--prefill"]),
        (["--prefill", "http://p"], ["prefill", "--pd-disaggregation"]),
        (["--decode", "http://d"], ["decode", "--pd-disaggregation"]),
        ([*DECODE, "--prefill", "http://p", "--worker-urls", "http://w"], ["--worker-urls"]),
        (["--prefill-policy", "random"], ["--prefill-policy", "--pd-disaggregation"]),
        (["--decode-policy", "random"], ["--decode-policy", "--pd-disaggregation"]),
        ([*DECODE, "--prefill", "http://p", "--pd-engine", "tgi"], ["--pd-engine", "vllm"]),
    ],
)
def test_what_does_not_go_together(arguments: list[str], named: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(*arguments)
    for part in named:
        assert part in str(refused.value)


def test_workers_of_a_role_count_as_such() -> None:
    halves = '[{"url": "http://p", "worker_type": "prefill"}, {"url": "http://d", %s}]'
    both = {"SGL_ROUTER_WORKERS": halves % '"worker_type": "decode"'}
    assert len(load("--pd-disaggregation", environment=both).workers) == 2
    with pytest.raises(ConfigError, match="--pd-disaggregation"):
        load(environment=both)
    regular = {"SGL_ROUTER_WORKERS": halves % '"cost": 1'}
    with pytest.raises(ConfigError, match="--decode"):
        load("--pd-disaggregation", "--decode", "http://e", environment=regular)


def test_policies_for_each_half() -> None:
    config = load(
        *DECODE, "--prefill", "http://p", "--prefill-policy", "cache_aware",
        "--decode-policy", "least_load", "--pd-engine", "vllm",
    )  # fmt: skip
    assert (config.prefill_policy, config.decode_policy) == ("cache_aware", "least_load")
    assert config.pd_engine == "vllm"
