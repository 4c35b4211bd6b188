"""The manifest that a plugin may carry in the custom section `sgl-router.manifest`."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from referencing import Registry

from sgl_router.wasm.config import GIVEN_BY
from sgl_router.wasm.printable import printable, shown
from sgl_router.wasm.refusals import Reason

SECTION = "sgl-router.manifest"
MAX_MANIFEST_BYTES = 64 * 1024
MAX_MISMATCHES = 100
"""Of a configuration, that are told: a schema can find thousands, each in a text of its own."""

HOST_ABI = 1

# What a plugin may ask for in `needs`, because each costs something to know or to send. Outcomes go
# to each plugin that exports `on_request_complete`, asked for or not.
KNOWN_NEEDS = frozenset(
    {
        "request_text",
        "outcomes",
        "pending_tokens",
        "prefix_match",
        "engine_metrics",
        "worker_info",
    }
)

_IN_BODY = frozenset({"request_text", "pending_tokens", "prefix_match"})

_FORBIDDEN_KEYWORDS = frozenset(
    {"$ref", "$dynamicRef", "$recursiveRef", "pattern", "patternProperties"}
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a plugin says of itself, read without running it.

    A module without a manifest gets the request's text, as any plugin did before there were
    manifests.

    Attributes:
        version: the plugin's own.
        needs: what it asks for of `KNOWN_NEEDS`.
        config_schema: JSON Schema of its configuration.
        reads_body: whether what is in the request's body makes a difference to it; if not, the
            body is passed on as it arrives, and the input says nothing of it.
    """

    version: str | None = None
    needs: frozenset[str] = frozenset({"request_text"})
    config_schema: Mapping[str, Any] | None = None
    reads_body: bool = True


def read_manifest(section: bytes) -> tuple[Manifest, list[Reason]]:
    """Parse the section; returns the manifest and everything that is wrong with it."""
    if len(section) > MAX_MANIFEST_BYTES:
        text = (
            f"its manifest has {len(section):,} bytes; at most {MAX_MANIFEST_BYTES:,} are allowed"
        )
        return Manifest(), [Reason("manifest_too_large", text)]
    try:
        raw = orjson.loads(section)
    except orjson.JSONDecodeError as error:
        return Manifest(), [Reason("manifest_not_json", f"its manifest is not JSON: {error}")]
    if not isinstance(raw, dict):
        return Manifest(), [Reason("manifest_not_json", "its manifest is not a JSON object")]
    needs, problems = _needs(raw.get("needs"))
    abi = raw.get("abi", HOST_ABI)
    if type(abi) is not int or not 1 <= abi <= HOST_ABI:
        text = f"it asks for ABI version {shown(abi)}; this router has {HOST_ABI}"
        problems.append(Reason("manifest_abi", text))
    schema = raw.get("config_schema")
    if schema is not None:
        problems += _schema_problems(schema)
    reads_body = raw.get("reads_body", True)
    if type(reads_body) is not bool:
        text = f"its manifest has reads_body {shown(reads_body)}; expected true or false"
        problems.append(Reason("manifest_reads_body", text))
    elif not reads_body and needs & _IN_BODY:
        text = (
            f"it needs {', '.join(sorted(needs & _IN_BODY))}, which the request's body tells, and "
            "its manifest says that it does not read that (reads_body)"
        )
        problems.append(Reason("manifest_body_needed", text))
    version = raw.get("version")
    return (
        Manifest(
            version=printable(version, 64) if isinstance(version, str) else None,
            needs=needs,
            config_schema=schema if isinstance(schema, dict) and not problems else None,
            reads_body=reads_body is not False,
        ),
        problems,
    )


def config_problems(manifest: Manifest, config: Mapping[str, Any]) -> list[Reason]:
    """Where `config` does not match the plugin's schema, each with its path; no more than 100."""
    if manifest.config_schema is None:
        return []
    validator = Draft202012Validator(manifest.config_schema, registry=Registry())
    try:
        errors = list(islice(validator.iter_errors(dict(config)), MAX_MISMATCHES))
    except (RecursionError, ValueError) as error:  # nested too deeply, an $id that is no URI
        why = printable(str(error), 200)
        return [_bad_schema(f"the config_schema in its manifest cannot be used: {why}")]
    return [
        Reason(
            "config_mismatch",
            f"config{printable(error.json_path.removeprefix('$'), 200)} does not match the "
            f"plugin's schema: {printable(error.message, 200)} {GIVEN_BY}",
        )
        for error in errors
    ]


def _needs(value: object) -> tuple[frozenset[str], list[Reason]]:
    if value is None:
        return Manifest().needs, []
    if not isinstance(value, list) or not all(isinstance(need, str) for need in value):
        text = "the needs in its manifest are not a list of names"
        return frozenset(), [Reason("manifest_needs", text)]
    unknown = sorted(set(value) - KNOWN_NEEDS)
    if unknown:
        text = (
            f"it needs {printable(', '.join(unknown), 200)}, which this router does not provide; "
        )
        text += f"it provides {', '.join(sorted(KNOWN_NEEDS))}"
        return frozenset(), [Reason("manifest_need_unknown", text)]
    return frozenset(value), []


def _schema_problems(schema: object) -> list[Reason]:
    if not isinstance(schema, dict):
        return [_bad_schema("the config_schema in its manifest is not an object")]
    try:
        forbidden = sorted(set(_forbidden_keywords(schema)))
        if not forbidden:
            Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        why = printable(error.message)
        return [_bad_schema(f"the config_schema in its manifest is no JSON Schema: {why}")]
    except RecursionError:
        return [_bad_schema("the config_schema in its manifest is nested too deeply")]
    if forbidden:
        text = f"the config_schema in its manifest uses {', '.join(forbidden)}: not allowed here"
        return [Reason("schema_keyword", text)]
    return []


def _bad_schema(text: str) -> Reason:
    return Reason("schema_invalid", text)


def _forbidden_keywords(schema: object) -> Iterator[str]:
    """Keywords by which a small schema could cost unbounded time, or fetch something."""
    if isinstance(schema, list):
        for item in schema:
            yield from _forbidden_keywords(item)
    if not isinstance(schema, dict):
        return
    for key, value in schema.items():
        if key in _FORBIDDEN_KEYWORDS:
            yield key
        elif key in ("properties", "$defs", "dependentSchemas") and isinstance(value, dict):
            yield from _forbidden_keywords(list(value.values()))
        elif key not in ("const", "default", "enum", "examples"):
            yield from _forbidden_keywords(value)
