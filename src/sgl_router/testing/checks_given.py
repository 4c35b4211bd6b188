"""The conformance checks of what a plugin is given: whatever a router may say of a request."""

from collections.abc import Mapping
from typing import Any

import orjson

from sgl_router.testing.case import DecisionCase
from sgl_router.testing.check import Check, Failed, NotForIt, decided
from sgl_router.testing.host import Host
from sgl_router.testing.pools import NOW_MS, case, extreme_cases, pool
from sgl_router.wasm.abi.json_v1 import MAX_FIELD_CHARACTERS

_STRANGE_TEXTS = (
    "naïve 你好 \U0001f468\u200d\U0001f469\u200d\U0001f467 مرحبا",
    'quotes " and \\ backslashes \\u0000 \\" /',
    "\x00\x01\x1f\x7f\x80\u2028\u2029\ufeff\ufffd",
    "e\u0301" * 50,
    " \n\t\r ",
)

_DEPTH = 64
"""Deeper than any sensible configuration. A guest has 128 KiB of stack, which Go's reader of JSON
uses up at a depth of some hundreds."""

_MALFORMED = (
    b"",
    b"\x00",
    b" ",
    b"{",
    b"null",
    b"[]",
    b'"text"',
    b"17",
    b"{}}",
    b"\xff\xfe\x00",
    b'{"workers": 3}',
    b'{"workers": null}',
    b'{"workers": [null]}',
    b'{"workers": [{"url": 5, "healthy": "yes", "load": "many"}]}',
    b'{"workers": [], "entropy": 1e400}',
    b'{"workers": [{"url": "\\ud800", "healthy": true, "load": 0}]}',
    b"[" * _DEPTH,
    b'{"workers":' * _DEPTH,
)


def _nulls(host: Host) -> None:
    for size in (1, 3):
        workers = pool(size, spread=False)
        decided(
            host.decide(case(workers, text=None, session=None, model=None)),
            "no text, no session, no model, no engine metrics",
        )


def _unicode(host: Host) -> None:
    workers = pool(4)
    for text in _STRANGE_TEXTS:
        asked = case(workers, text=text, session=text, model=text)
        decided(host.decide(asked), f"text, session and model are {text!a:.80}")


def _long_text(host: Host) -> None:
    workers = pool(4)
    for text in ("a" * 32_768, "a" * 100_000, "你" * 32_768, '"\\' * 20_000):
        session = text[: 2 * MAX_FIELD_CHARACTERS]
        asked = case(workers, text=text, session=session, model=session)
        decided(host.decide(asked), f"a text of {len(text):,} characters")


def _extremes(host: Host) -> None:
    for asked in extreme_cases(5):
        request = asked.request
        what = f"entropy {request.entropy}, now_ms {request.now_ms}, the largest and smallest loads"
        decided(host.decide(asked), what)


def _unknown_keys(host: Host) -> None:
    _only_json(host)
    workers = pool(3)
    asked = case(workers)
    given = _input_of(asked, host.config)
    plain = decided(host.ask(orjson.dumps(given), asked), "an input as it is")
    strange = {"sgl_unknown": [{"a": [None, True, 1.5e300]}, "\u2028"]}
    told = {
        **strange,
        **given,
        "workers": [{**worker, **strange} for worker in given["workers"]],
        "request": {**given["request"], **strange},
    }
    host.start()
    other = decided(host.ask(orjson.dumps(told), asked), "an input with keys of a later version")
    if not plain.same_as(other):
        raise Failed(f"keys that it cannot know make a difference: {plain}; with them, {other}")


def _malformed_input(host: Host) -> None:
    _only_json(host)
    asked = case(pool(1))
    for payload in _MALFORMED:
        answer = host.ask(payload, asked)
        if answer.failure is not None and answer.failure.kind in (
            "trap",
            "timeout",
            "out_of_memory",
            "bad_output",
        ):
            raise Failed(f"given {payload!r:.60}: " + "\n".join(answer.failure.lines()))


def _empty_config(host: Host) -> None:
    if not host.allows({}):
        raise NotForIt("its config_schema does not allow an empty configuration")
    host.start({})
    answer = host.decide(case(pool(3)))
    if answer.failure is not None and answer.failure.kind != "plugin_error":
        raise Failed("with an empty configuration: " + "\n".join(answer.failure.lines()))


def _only_json(host: Host) -> None:
    if host.abi != "json_v1":
        raise NotForIt("only a plugin of the JSON ABI is given JSON")


def _input_of(asked: DecisionCase, config: Mapping[str, Any]) -> dict[str, Any]:
    """The least that the JSON ABI says."""
    request = asked.request
    workers = [
        {"url": worker.url, "healthy": healthy, "load": worker.load}
        for worker, healthy in zip(asked.workers, asked.workers.healthy, strict=True)
    ]
    return {
        "workers": workers,
        "request_text": request.text,
        "config": dict(config),
        "state": dict(asked.state),
        "request": {
            "id": request.id,
            "path": request.path,
            "model": request.model,
            "stream": request.stream,
            "session": request.session,
            "attempt": 0,
            "text_bytes": len((request.text or "").encode()),
        },
        "now_ms": NOW_MS,
        "entropy": request.entropy,
    }


GIVEN = (
    Check("nulls", "Text, session, model and what engines say of themselves may be null.", _nulls),
    Check(
        "unicode",
        "Text, session and model are any Unicode text, with quotes, NUL and line ends.",
        _unicode,
    ),
    Check(
        "long_text",
        "The text has up to max_request_text_bytes; session and model are up to "
        f"{MAX_FIELD_CHARACTERS:,} characters long.",
        _long_text,
    ),
    Check(
        "extremes",
        "Loads go up to 2^31 - 1, the entropy to 2^53 - 1; times, weights and tokens may be 0.",
        _extremes,
    ),
    Check(
        "unknown_keys",
        "Keys that it does not know make no difference: later versions of the ABI add some.",
        _unknown_keys,
    ),
    Check(
        "malformed_input",
        "Of an input that is none it reports an error, or it answers where it can do without what "
        "is wrong with it; it does not trap, hang, or answer what cannot be read.",
        _malformed_input,
    ),
    Check(
        "empty_config",
        "A configuration that its schema allows does not make it fail, {} included.",
        _empty_config,
    ),
)
"""Of all checks, those of what it is given."""
