"""The documents agree with the code, and with each other."""

import json
import re
import runpy
import shlex
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from sgl_router.cli.main import _parser
from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.errors import FailureKind
from sgl_router.wasm.config import WasmPolicyConfig
from sgl_router.wasm.manifest import KNOWN_NEEDS
from sgl_router.wasm.refusals import refusals
from sgl_router.wasm.status import PluginSource, PluginStatus, QuarantineStatus, VersionStatus
from tests.admin.support import Router

ROOT = Path(__file__).parents[1]
REFUSALS = str(ROOT / "scripts" / "write_refusals.py")
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if ".venv" not in path.parts and "target" not in path.parts
)


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def first_cells(text: str) -> list[str]:
    """Whatever stands as code in the first column of a table."""
    cells = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_the_options_page_is_current() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_options.py"))
    assert script["page"]() == text_of("docs/options.md")


def test_the_pages_of_refusals_are_current() -> None:
    for path, text in runpy.run_path(REFUSALS)["pages"]().items():
        assert path.read_text(encoding="utf-8") == text


def test_each_refusal_is_translated() -> None:
    translated = runpy.run_path(REFUSALS)["texts"]("zh-CN")["refusals"]
    assert list(translated) == list(refusals())
    for code, entry in translated.items():
        assert entry.keys() == {"cause", "remedy"}, code
        english = refusals()[code]
        for ours, theirs in ((english.cause, entry["cause"]), (english.remedy, entry["remedy"])):
            assert set(_spans(theirs)) == set(_spans(ours)), code


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.name)
def test_remedies_name_the_settings_that_a_new_plugin_has(language: Language) -> None:
    translated = runpy.run_path(REFUSALS)["texts"]("zh-CN")["refusals"]
    for value in language.settings.values():
        said = f"`{json.dumps(value)}`" if isinstance(value, list) else f"{value}"
        assert any(said in refusal.remedy for refusal in refusals().values()), said
        assert any(said in entry["remedy"] for entry in translated.values()), said


def _spans(text: str) -> list[str]:
    """What is the same in every language: code, and the pages to which links lead."""
    return re.findall(r"`[^`]+`|\]\([^)#]+", text.replace(".zh-CN.md", ".md"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^ *```.*?^ *```", "", document.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        page = document.parent / path if path else document
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [_anchor(heading) for heading in headings], target


def _anchor(heading: str) -> str:
    """As GitHub makes them."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_understood(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    blocks = re.findall(r"^```.*?\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    for line in "".join(blocks).replace("\\\n", "").splitlines():
        if line.removeprefix("$ ").startswith("sgl-router "):
            _, *words = shlex.split(line.removeprefix("$ "), comments=True)
            _options, unknown = _parser().parse_known_args(words)
            assert not unknown, line


def test_both_readmes_say_the_same() -> None:
    """Commands, links, tables and figures: whatever is not prose is the same in both."""
    english, chinese = text_of("README.md"), text_of("README.zh-CN.md")
    for taken in (_code, _links, _headings, _figures, first_cells):
        assert taken(english) == taken(chinese)


def _code(text: str) -> list[str]:
    blocks = re.findall(r"^```.*?^```", text, re.MULTILINE | re.DOTALL)
    return [re.sub(r"#.*", "", block) for block in blocks]


def _links(text: str) -> list[str]:
    """Where links lead; a page that is there in both languages is one."""
    found = set(re.findall(r"\]\(([^)]+)\)", text)) - {"README.md", "README.zh-CN.md"}
    return sorted({link.replace(".zh-CN.md", ".md") for link in found})


def _headings(text: str) -> int:
    return len(re.findall(r"^## ", text, re.MULTILINE))


def _figures(text: str) -> list[str]:
    return sorted(re.findall(r"\d+(?:\.\d+)? ?µs", text))


def test_each_test_that_behavior_names_is_there() -> None:
    paths = list((ROOT / "tests").rglob("test_*.py"))
    names = {path.name for path in paths} | {str(path.relative_to(ROOT)) for path in paths}
    for path in paths:
        names.update(re.findall(r"def (test_\w+)\(", path.read_text(encoding="utf-8")))
    named = re.findall(r"`((?:tests/\w+/)?test_\w+\.py|test_\w+)`", text_of("docs/behavior.md"))
    assert named
    assert not set(named) - names


def test_each_code_of_an_error_is_described() -> None:
    answered = {
        code
        for path in (ROOT / "src").rglob("*.py")
        for code in re.findall(r'RequestError\(\s*\d{3},\s*"(\w+)"', path.read_text("utf-8"))
    }
    assert answered
    assert not {code for code in answered if f"`{code}`" not in text_of("docs/behavior.md")}


# ---- plugins


def test_each_setting_of_a_plugin_is_described() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \|([^|]*)\|", _settings_table(), re.MULTILINE))
    for setting in fields(WasmPolicyConfig):
        if setting.name != "name":  # has words of its own
            assert rows.pop(setting.name).strip() == _default(setting)
    assert not rows


def _settings_table() -> str:
    _, _, text = text_of("docs/abi.md").partition("\n## Settings\n")
    return text.partition("\n## ")[0]


def _default(setting: Any) -> str:
    if setting.default is MISSING and setting.default_factory is MISSING:
        return ""
    default = setting.default if setting.default is not MISSING else setting.default_factory()
    if default in (None, ()):
        return "none"
    return f"`{default}`" if isinstance(default, str | dict) else f"{default:,}"


def test_each_way_to_fail_is_described() -> None:
    assert set(get_args(FailureKind)) <= set(first_cells(text_of("docs/abi.md")))


def test_each_need_is_described() -> None:
    text = text_of("docs/abi.md")
    assert not {need for need in KNOWN_NEEDS if f"`{need}`" not in text}


def test_whatever_is_shown_of_a_plugin_is_described() -> None:
    shown = {field.name for field in fields(PluginStatus)} - {"quarantine"}
    shown |= {field.name for field in fields(VersionStatus)} - {"source"}
    shown |= {f"quarantine.{field.name}" for field in fields(QuarantineStatus)}
    shown |= {f"source.{field.name}" for field in fields(PluginSource)}
    _, _, text = text_of("docs/operating-plugins.md").partition("\n## What is shown\n")
    assert set(first_cells(text.partition("\n## ")[0])) == shown


async def test_each_change_of_plugins_by_http_is_described() -> None:
    async with Router().client() as client:
        paths = (await client.get("/openapi.json")).json()["paths"]
    calls = {
        f"{method.upper()} {path}"
        for path, methods in paths.items()
        if path.startswith(("/plugins", "/policy", "/shadow"))
        for method in methods
    }
    assert len(calls) > 10
    text = text_of("docs/operating-plugins.md")
    assert not {call for call in calls if f"`{call}`" not in text}
