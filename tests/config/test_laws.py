"""Laws over all options: it does not matter where a value is given, only which place counts."""

import json
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.config import RouterConfig
from sgl_router.config.options import OPTIONS, Option, Shape
from tests.config.support import load

WORD = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True)
URL = WORD.map(lambda host: f"http://{host}:1")
SPECIAL: dict[str, st.SearchStrategy[Any]] = {
    "worker_urls": st.lists(URL, min_size=1, max_size=3),
    "cors_allowed_origins": st.lists(st.just("*") | URL, max_size=3),
    "health_check_endpoint": WORD.map(lambda word: f"/{word}"),
    "engine_metrics_endpoint": WORD.map(lambda word: f"/{word}"),
    "max_concurrent_requests": st.just(-1) | st.integers(1, 9999),
    "retry_initial_backoff_ms": st.integers(0, 30000),
    "retry_max_backoff_ms": st.integers(30000, 99999),
    "workers": st.lists(
        st.fixed_dictionaries(
            {"url": URL},
            optional={"model_id": WORD, "cost": st.integers(0, 9), "labels": st.just({"a": "b"})},
        ),
        max_size=3,
    ),
}
TOGETHER = {
    "pd_disaggregation", "prefill", "decode", "prefill_policy", "decode_policy", "plugin_config",
    "tls_cert_path", "tls_key_path", "client_cert_path", "client_key_path",
}  # fmt: skip
"""Options that do not stand alone, or whose value is read from a file; they have other tests."""


def numbers(name: str) -> st.SearchStrategy[Any]:
    """Values that the field's bounds admit."""
    field = RouterConfig.model_fields[name]
    low: float = 0
    high: float = 60000
    for bound in field.metadata:
        low = max(low, getattr(bound, "ge", getattr(bound, "gt", low)))
        high = min(high, getattr(bound, "le", high))
    if "int" in str(field.annotation):
        return st.integers(int(low), int(high))
    return st.floats(low, high, exclude_min=low == 0, allow_subnormal=False)


def values_of(option: Option) -> st.SearchStrategy[Any]:
    """What the option may be, as it stands in a file."""
    if option.name in SPECIAL:
        return SPECIAL[option.name]
    annotation = RouterConfig.model_fields[option.name].annotation
    if option.shape is Shape.SWITCH:
        return st.just(True)
    if option.shape is Shape.WORDS:
        return st.lists(WORD, min_size=1, max_size=3)
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if "str" in str(annotation).lower():
        return WORD
    return numbers(option.name)


FREE = [option for option in OPTIONS.values() if option.name not in TOGETHER]
VALUES = {option.name: values_of(option) for option in FREE}
SETTINGS = st.fixed_dictionaries({}, optional=VALUES)


def as_flags(values: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        flag = OPTIONS[name].flag
        if flag is None:
            continue
        words = value if isinstance(value, list) else [] if value is True else [value]
        flags += [flag, *map(str, words)]
    return flags


def as_variables(values: dict[str, Any]) -> dict[str, str]:
    variables = {}
    for name, value in values.items():
        if OPTIONS[name].shape is Shape.JSON:
            text = json.dumps(value)
        else:
            text = " ".join(value) if isinstance(value, list) else str(value)
        variables[OPTIONS[name].variable] = text
    return variables


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws") / "router.yaml"


@given(values=SETTINGS)
def test_it_does_not_matter_where_a_value_is_given(values: dict[str, Any], file: Path) -> None:
    file.write_text(yaml.safe_dump(values))
    expected = RouterConfig.model_validate(values)
    assert load("--config", str(file)) == expected
    assert load(environment=as_variables(values)) == expected
    without_flag = {name: values[name] for name in values if OPTIONS[name].flag is None}
    assert load(*as_flags(values), environment=as_variables(without_flag)) == expected


@given(in_file=SETTINGS, in_environment=SETTINGS, as_flag=SETTINGS)
def test_the_place_that_counts_more_wins(
    in_file: dict[str, Any], in_environment: dict[str, Any], as_flag: dict[str, Any], file: Path
) -> None:
    file.write_text(yaml.safe_dump(in_file))
    as_flag = {name: as_flag[name] for name in as_flag if OPTIONS[name].flag is not None}
    config = load(
        "--config", str(file), *as_flags(as_flag), environment=as_variables(in_environment)
    )
    assert config == RouterConfig.model_validate({**in_file, **in_environment, **as_flag})


@pytest.mark.parametrize("name", VALUES)
def test_a_default_that_is_shown_is_the_default(name: str) -> None:
    """What --help and the reference page call the default can be given, and changes nothing."""
    option = OPTIONS[name]
    if option.default_text:
        assert load(environment={option.variable: option.default_text}) == RouterConfig()
    else:
        assert option.default in (None, (), False)
