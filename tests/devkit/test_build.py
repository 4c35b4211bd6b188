"""A plugin's folder becomes a module that a router would load, or nothing changes."""

from collections.abc import Sequence
from pathlib import Path

import orjson
import pytest

from sgl_router.devkit.build import BuiltPlugin, build
from sgl_router.devkit.language import Language
from sgl_router.devkit.project import read_project
from sgl_router.devkit.toolchains import runner
from sgl_router.errors import BuildError, PluginRefused
from sgl_router.wasm.binary import read_info
from sgl_router.wasm.manifest import SECTION
from tests.devkit.fake import FAKE, SHIPPED, fake_language, fake_project


def built(folder: Path, languages: Sequence[Language] = (FAKE,)) -> BuiltPlugin:
    return build(read_project(folder, languages), runner(), languages)


def test_a_module_with_its_manifest(tmp_path: Path) -> None:
    more = 'version = "1.2"\nneeds = ["outcomes"]\n[config_schema]\ntype = "object"'
    made = built(fake_project(tmp_path, more=more))
    assert made.path == tmp_path / "build" / "my-plugin.wasm"
    assert made.path.read_bytes() == made.wasm
    assert made.size == len(made.wasm)
    sections = read_info(made.wasm).custom_sections
    said = orjson.loads(sections.pop(SECTION))
    assert (said["name"], said["version"], said["needs"]) == ("my-plugin", "1.2", ["outcomes"])
    assert sections == {n: s for n, s in read_info(SHIPPED).custom_sections.items() if n != SECTION}


def test_it_is_replaced_in_one_step(tmp_path: Path) -> None:
    """Whoever has the earlier file open still reads all of it."""
    before = built(fake_project(tmp_path))
    with before.path.open("rb") as file:
        after = built(fake_project(tmp_path, more='version = "2"'))
        assert file.read() == before.wasm != after.wasm
    assert after.path.read_bytes() == after.wasm
    assert list(after.path.parent.iterdir()) == [after.path]


def test_the_folder_may_be_the_current_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert built(Path()).path == Path("build/my-plugin.wasm")
    assert (tmp_path / "build" / "my-plugin.wasm").exists()


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("echo 'policy.sh:3: no such thing' >&2; exit 1", "policy.sh:3: no such thing"),
        ("rm -f out.wasm", "out.wasm"),
        ("echo '(module)' > out.wasm", "no header"),
        ("head -c 5000 module.wasm > out.wasm", "ends unexpectedly"),
    ],
)
def test_what_fails_leaves_what_was_there(script: str, expected: str, tmp_path: Path) -> None:
    before = built(fake_project(tmp_path))
    with pytest.raises(BuildError) as failed:
        built(fake_project(tmp_path, script=script))
    assert expected in str(failed.value)
    assert list(before.path.parent.iterdir()) == [before.path]
    assert before.path.read_bytes() == before.wasm


@pytest.mark.parametrize(
    ("script", "more", "expected"),
    [
        ("printf '\\0asm\\1\\0\\0\\0' > out.wasm", "", "select_worker"),
        ("cp module.wasm out.wasm", "[settings]\nmax_memory_bytes = 1", "max_memory_bytes"),
    ],
)
def test_what_a_router_would_refuse(script: str, more: str, expected: str, tmp_path: Path) -> None:
    before = built(fake_project(tmp_path))
    with pytest.raises(PluginRefused) as refused:
        built(fake_project(tmp_path, script=script, more=more))
    assert any(expected in reason for reason in refused.value.reasons)
    assert before.path.read_bytes() == before.wasm


def test_a_missing_tool(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="apt install dash"):
        built(fake_project(tmp_path), [fake_language(tool=None)])
    assert not (tmp_path / "build").exists()


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    (fake_project(tmp_path) / "build" / "my-plugin.wasm").mkdir(parents=True)
    with pytest.raises(OSError, match=r"my-plugin\.wasm"):
        built(tmp_path)
    assert [path.name for path in (tmp_path / "build").iterdir()] == ["my-plugin.wasm"]
