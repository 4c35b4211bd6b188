"""One decision of a plugin, to look at. `sgl-router plugin run` shows it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgl_router.devkit.target import Target
from sgl_router.errors import ConfigError
from sgl_router.testing.answer import Answer
from sgl_router.testing.case import DecisionCase, too_much
from sgl_router.testing.golden import answer_to, unsayable
from sgl_router.testing.host import PluginHost
from sgl_router.testing.pools import NOW_MS
from sgl_router.wasm.module import read_file

TEXT = "You are a helpful assistant. Hello"


@dataclass(frozen=True, slots=True)
class SingleRun:
    """One decision.

    Attributes:
        abi: the contract that the plugin keeps.
        given: the input, in the JSON ABI's form whatever its contract.
        made_up: whether nobody gave one.
        unsaid: parts of the input that this plugin was not told, since no router says them.
        answer: what came of it.
        output: the end of what the plugin wrote, or None.
    """

    abi: str
    given: Mapping[str, Any]
    made_up: bool
    unsaid: tuple[str, ...]
    answer: Answer
    output: str | None


def decide_once(
    target: Target, given: Mapping[str, Any] | None, state: Mapping[str, Any] | None
) -> SingleRun:
    """Have a plugin decide once, on a new instance.

    Args:
        given: an input of the JSON ABI, or a golden decision, whose input is taken; None: one is
            made up. Where it has no `config`, that of the plugin's settings is used.
        state: what the plugin has returned before; None: that of the input.

    Raises PluginRefused where it does not load, ConfigError where its ABI cannot say the input.
    """
    with PluginHost(read_file(str(target.module)), target.config) as host:
        asked = made_up_input(host.needs) if given is None else dict(given)
        if isinstance(asked.get("input"), dict) and "workers" not in asked:
            asked = dict(asked["input"])
        asked.setdefault("config", dict(target.config.config))
        if state is not None:
            asked["state"] = dict(state)
        if why := too_much(asked):
            raise ConfigError(f"the input {why} (option --input or --state)")
        case = DecisionCase.from_input(asked)
        if why := unsayable(host, case):
            raise ConfigError(f"{why} (option --input)")
        answer = answer_to(host, case)
        told = host.abi == "json_v1"
        return SingleRun(
            abi=host.abi,
            given=asked,
            made_up=given is None,
            unsaid=() if told else tuple(case.unsaid),
            answer=answer,
            output=host.output if answer.failure is None else answer.failure.output,
        )


def made_up_input(needs: frozenset[str]) -> dict[str, Any]:
    """An everyday input: three workers, one of which is down, and a chat request.

    Args:
        needs: what the plugin's manifest asks for; its keys are there.
    """
    workers: list[dict[str, Any]] = [
        {"url": f"http://10.0.0.{number}:30000", "healthy": number != 2, "load": load}
        for number, load in ((1, 3), (2, 0), (3, 1))
    ]
    request: dict[str, Any] = {
        "id": "chatcmpl-1",
        "path": "/v1/chat/completions",
        "model": "llama",
        "stream": True,
        "session": "u42",
        "attempt": 0,
        "text_bytes": len(TEXT),
    }
    for index, worker in enumerate(workers):
        if "pending_tokens" in needs:
            worker["pending_tokens"] = 400 * index
        if "prefix_match" in needs:
            worker["prefix_match"] = (6, 0, 0)[index]
        if "engine_metrics" in needs:
            worker |= {"queued": index, "running": 2, "kv_usage": 0.25, "metrics_age_ms": 300}
        if "worker_info" in needs:
            worker |= {"weight": 1.0, "labels": {"zone": "ab"[index % 2]}, "ttft_ms": 80.5}
    if "pending_tokens" in needs:
        request["prompt_tokens"] = len(TEXT) // 4
    return {
        "workers": workers,
        "request_text": TEXT,
        "state": {},
        "request": request,
        "now_ms": NOW_MS,
        "entropy": 2**52 + 12_345,
    }
