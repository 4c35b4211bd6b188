"""What the pages of the ABIs show is what the router sends and takes."""

import json
import shutil
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from sgl_router.core.policy import Outcome
from sgl_router.core.worker import EngineMetrics
from sgl_router.devkit.build import build
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import read_project
from sgl_router.devkit.toolchains import check_tools, runner
from sgl_router.errors import BuildError
from sgl_router.policies import WasmPolicyConfig
from sgl_router.testing.conformance import check_conformance
from sgl_router.wasm.abi.json_v1 import EMPTY_STATE, JsonEncoder, decode_answer
from sgl_router.wasm.manifest import KNOWN_NEEDS, read_manifest
from tests.conftest import leave_out
from tests.docs.pages import ROOT
from tests.wasm.guests import BUILTIN_NAMES, request, view

SNIPPETS = Path(__file__).parent / "snippets"
TABLE_PLUGIN = ROOT / "examples" / "tutorials" / "table_abi"


def snippet(name: str) -> Any:
    return json.loads((SNIPPETS / name).read_text(encoding="utf-8"))


def shape(value: object) -> object:
    """The keys, and of what kind the values are: whole numbers are numbers."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return "number" if type(value) in (int, float) else type(value).__name__


def sent(needs: frozenset[str]) -> Any:
    """An input in which everything is known."""
    encoder = JsonEncoder(snippet("input.json")["config"], needs=needs, max_text_bytes=1000)
    workers = view(True)
    workers[0].metrics = EngineMetrics(queued=1, running=2, kv_usage=0.5, at_ms=5)
    workers[0].ttft_ms = 8.25
    workers[0].labels = {"zone": "a"}
    body = {"model": "m", "user": "u", "stream": True, "prompt": "Hello"}
    asked = request(orjson.dumps(body), entropy=5, now_ms=7)
    return orjson.loads(
        encoder.encode_request(workers, asked, EMPTY_STATE.merged("p", {"last": 0}))
    )


def test_the_input() -> None:
    assert shape(snippet("input.json")) == shape(sent(frozenset({"request_text"})))


def test_a_worker_of_which_everything_is_asked() -> None:
    assert shape(snippet("worker.json")) == shape(sent(KNOWN_NEEDS)["workers"][0])


def test_the_result() -> None:
    shown = snippet("result.json")
    index, patch = decode_answer("p", orjson.dumps(shown))
    assert (index, patch) == (shown["selected_worker"], shown["state"])


def test_the_outcome() -> None:
    encoder = JsonEncoder({}, needs=(), max_text_bytes=10)
    outcome = Outcome("http://a:1", True, 200, 1.5, 2.5, 3, None)
    assert shape(snippet("outcome.json")) == shape(
        orjson.loads(encoder.encode_outcome(outcome, EMPTY_STATE))
    )


def test_the_manifest() -> None:
    shown = snippet("manifest.json")
    manifest, problems = read_manifest(orjson.dumps(shown))
    assert problems == []
    assert manifest.version == shown["version"]
    assert manifest.config_schema == shown["config_schema"]


def test_the_settings() -> None:
    shown = yaml.safe_load((SNIPPETS / "settings.yaml").read_text(encoding="utf-8"))
    ((name, settings),) = shown["plugin_config"].items()
    assert WasmPolicyConfig(name=name, **settings).problems(BUILTIN_NAMES) == []


def test_the_table_plugin_keeps_the_abi(tmp_path: Path) -> None:
    folder = tmp_path / "table_abi"
    shutil.copytree(TABLE_PLUGIN, folder, ignore=shutil.ignore_patterns("target", "build"))
    project = read_project(folder)
    (rust,) = (one for one in LANGUAGES if one.name == project.language)
    try:
        check_tools(rust)
    except BuildError as error:
        leave_out(str(error))
    made = build(project, runner())
    report = check_conformance(made.wasm, settings=project.config())
    assert report.abi == "table_v1"
    assert [result for result in report.results if result.outcome == "failed"] == []


@pytest.mark.parametrize("name", sorted(path.name for path in SNIPPETS.iterdir()))
def test_each_snippet_is_shown(name: str) -> None:
    pages = (ROOT / "docs").glob("abi*.md")
    assert any(f"from tests/docs/snippets/{name} " in page.read_text("utf-8") for page in pages)
