"""The manifest in its custom section: what is read from it, and what is refused."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.errors import PluginRefused
from sgl_router.wasm.manifest import (
    HOST_ABI,
    KNOWN_NEEDS,
    MAX_MANIFEST_BYTES,
    MAX_MISMATCHES,
    SECTION,
    Manifest,
    config_problems,
    read_manifest,
)
from sgl_router.wasm.module import read_module
from tests.wasm.guests import BUILTIN_NAMES, Bench, guest

WEIGHTS = {
    "type": "object",
    "properties": {
        "weights": {"type": "object", "additionalProperties": {"type": "number", "minimum": 0}}
    },
    "required": ["weights"],
}


def problem(**fields: object) -> str:
    (only,) = read_manifest(orjson.dumps(fields))[1]
    return only.text


def test_a_good_manifest(bench: Bench) -> None:
    fields = {"abi": 1, "name": "x", "version": "1.2.3", "needs": [], "config_schema": WEIGHTS}
    wasm = guest(sections={SECTION: orjson.dumps(fields), "other": b"\xff"})
    config = bench.config(wasm, config={"weights": {"a": 1}})
    manifest = read_module(config, BUILTIN_NAMES).manifest
    assert manifest == Manifest("1.2.3", frozenset(), WEIGHTS)


def test_every_key_is_optional() -> None:
    assert read_manifest(b"{}") == (Manifest(), [])


def test_a_plugin_may_decline_the_body() -> None:
    manifest, problems = read_manifest(b'{"reads_body": false, "needs": ["worker_info"]}')
    assert (manifest.reads_body, problems) == (False, [])
    assert read_manifest(b'{"reads_body": true}') == (Manifest(), [])


@pytest.mark.parametrize("value", [0, 1, None, "false", []])
def test_to_read_the_body_or_not_is_a_yes_or_no(value: object) -> None:
    assert "reads_body" in problem(reads_body=value, needs=[])


@pytest.mark.parametrize("need", ["request_text", "pending_tokens", "prefix_match"])
def test_what_is_in_the_body_cannot_be_had_without_it(need: str) -> None:
    assert need in problem(reads_body=False, needs=[need])


def test_a_refusal_names_the_plugin_and_every_reason(bench: Bench) -> None:
    fields = {"abi": 9, "needs": ["crystal_ball"], "config_schema": []}
    config = bench.config(guest(sections={SECTION: orjson.dumps(fields)}), "seer")
    with pytest.raises(PluginRefused) as caught:
        read_module(config, BUILTIN_NAMES)
    assert caught.value.plugin == "seer"
    assert len(caught.value.reasons) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[]", b"null", b"{} {}", b"[" * 50_000])
def test_what_is_no_json_object(content: bytes) -> None:
    (found,) = read_manifest(content)[1]
    assert "manifest" in found.text


def test_a_manifest_has_a_size() -> None:
    around = len(b'{"a":""}')
    content = b'{"a":"' + b"x" * (MAX_MANIFEST_BYTES - around) + b'"}'
    assert read_manifest(content)[1] == []
    (found,) = read_manifest(content + b" ")[1]
    assert f"{MAX_MANIFEST_BYTES + 1:,}" in found.text
    assert f"{MAX_MANIFEST_BYTES:,}" in found.text


@pytest.mark.parametrize("abi", [HOST_ABI + 1, 0, -1, 1.0, "1", None, True, [1], {}])
def test_an_abi_that_the_host_does_not_have(abi: object) -> None:
    text = problem(abi=abi)
    assert "ABI" in text
    assert str(HOST_ABI) in text
    if not isinstance(abi, (list, dict)):
        assert repr(abi) in text


def test_an_abi_nested_deeper_than_python_recurses() -> None:
    (found,) = read_manifest(b'{"abi":' + b"[" * 1000 + b"]" * 1000 + b"}")[1]
    assert "ABI" in found.text


@pytest.mark.parametrize("needs", ["request_text", {"request_text": True}, [1], [None], 7])
def test_needs_are_a_list_of_names(needs: object) -> None:
    assert "needs" in problem(needs=needs)


def test_an_unknown_need_is_named_with_those_there_are() -> None:
    text = problem(needs=["request_text", "crystal_ball", "\x1b[31m"])
    assert "crystal_ball" in text
    assert "\\x1b" in text
    assert all(need in text for need in KNOWN_NEEDS)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({}, "weights"),
        ({"weights": 1}, ".weights"),
        ({"weights": {"a": 1, "b": -1}}, ".weights.b"),
        ({"weights": {"a": "1"}}, ".weights.a"),
    ],
)
def test_a_config_that_does_not_match_is_named_by_its_path(
    bench: Bench, config: dict[str, object], path: str
) -> None:
    wasm = guest(sections={SECTION: orjson.dumps({"config_schema": WEIGHTS})})
    with pytest.raises(PluginRefused) as caught:
        read_module(bench.config(wasm, config=config), BUILTIN_NAMES)
    (text,) = caught.value.reasons
    assert path in text
    for option in ("--plugin-config", "--settings", "[settings.config]", "WasmPolicyConfig"):
        assert option in text, "where it can be given"


def test_each_mismatch_is_reported() -> None:
    manifest = Manifest(config_schema=WEIGHTS)
    assert len(config_problems(manifest, {"weights": {"a": -1, "b": -2, "c": 3}})) == 2


def test_a_schema_that_finds_thousands_of_mismatches_is_heard_no_further() -> None:
    schema = {"allOf": [{"required": [f"key{number}"]} for number in range(2_000)]}
    found = config_problems(Manifest(config_schema=schema), {})
    assert len(found) == MAX_MISMATCHES
    assert "key0" in found[0].text


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"$ref": "#"}, "$ref"),
        ({"properties": {"a": {"$ref": "http://127.0.0.1/x"}}}, "$ref"),
        ({"allOf": [{"not": {"pattern": "(a+)+$"}}]}, "pattern"),
        ({"patternProperties": {"(a+)+$": {}}}, "patternProperties"),
        ({"$defs": {"a": {"$dynamicRef": "#a"}}}, "$dynamicRef"),
        (
            {"allOf": [{"$schema": "https://json-schema.org/draft/2019-09/schema"}]}
            | {"anyOf": [{"$recursiveRef": "#"}]},
            "$recursiveRef",
        ),
    ],
)
def test_keywords_that_cost_without_bound_or_fetch(schema: object, keyword: str) -> None:
    assert keyword in problem(config_schema=schema)


def test_properties_and_values_may_be_called_like_those_keywords() -> None:
    schema = {"properties": {"pattern": {"const": {"$ref": 1}}, "$ref": {"enum": [{"$ref": 1}]}}}
    manifest, problems = read_manifest(orjson.dumps({"config_schema": schema}))
    assert problems == []
    assert config_problems(manifest, {"pattern": {"$ref": 1}}) == []
    assert len(config_problems(manifest, {"pattern": 2, "$ref": 1})) == 2


@pytest.mark.parametrize(
    "schema", [[], "object", True, {"type": "nonsense"}, {"properties": 1}, {"minimum": "a"}]
)
def test_what_is_no_schema(schema: object) -> None:
    assert "config_schema" in problem(config_schema=schema)


def test_a_schema_nested_beyond_reason_is_refused_or_used(no_collector: None) -> None:
    """Without the collector, which could run at the deepest point and find no stack left."""
    for depth in (10, 50, 200, 500):
        nested: dict[str, Any] = {}
        section = b'{"config_schema":' + b'{"not":' * depth + b"{}" + b"}" * depth + b"}"
        manifest, problems = read_manifest(section)
        assert all("config_schema" in found.text for found in problems)
        assert isinstance(config_problems(manifest, nested), list)
    assert problems, "the deepest is refused"


def test_a_schema_whose_id_is_no_uri_is_refused() -> None:
    schema = {"$id": "x", "properties": {"a": {"$id": "http://[", "type": "string"}}}
    manifest, problems = read_manifest(orjson.dumps({"config_schema": schema}))
    assert problems == []
    (found,) = config_problems(manifest, {"a": 1})
    assert "config_schema" in found.text


@given(st.binary(max_size=200))
def test_any_section_gives_a_manifest_or_problems(section: bytes) -> None:
    manifest, problems = read_manifest(section)
    assert isinstance(manifest, Manifest)
    assert all(found.text.isprintable() for found in problems)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "$id", "$schema", "not", "allOf"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(_JSON, st.dictionaries(st.text(max_size=4), _JSON, max_size=3))
def test_any_schema_is_refused_or_applied(schema: Any, config: dict[str, Any]) -> None:
    manifest, problems = read_manifest(orjson.dumps({"config_schema": schema}))
    if not problems:
        assert isinstance(config_problems(manifest, config), list)
