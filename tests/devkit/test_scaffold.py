"""A folder from the templates: complete, with its name in it, for every language and policy."""

import re
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.devkit import scaffold
from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import read_project
from sgl_router.devkit.scaffold import POLICIES, crate_name, new_plugin
from sgl_router.errors import ConfigError
from sgl_router.wasm.manifest import KNOWN_NEEDS
from tests.devkit.fake import FAKE, fake_language

NAMES = st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True)

each_language = pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.name)


@pytest.fixture
def templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Templates of the fake language, in place of the kit's."""
    folder = tmp_path / "templates"
    contents = {
        "fake/policy.sh": "of the language",
        "fake/.hidden/{{crate}}.cfg": "{{name}} {{crate}} {{language}} {name} {{other}}",
        "fake/__pycache__/glue.pyc": "compiled when it was installed",
        "fake/policies/lmetric/policy.sh": "lmetric for {{name}}",
        "fake/policies/sticky_session/policy.sh": "sticky_session",
        "shared/lmetric/plugin.toml": 'name = "{{name}}"\nlanguage = "{{language}}"\n\n[settings]\n'
        "isolation = 'shared'\n",
        "shared/lmetric/tests/one.json": "{}",
    }
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(content)
    monkeypatch.setattr(scaffold, "TEMPLATES", folder)
    return folder


@pytest.mark.usefixtures("templates")
def test_which_files_are_made(tmp_path: Path) -> None:
    made = new_plugin(tmp_path / "new", "My-p", FAKE, "lmetric")
    assert {str(path) for path in made} == {
        ".hidden/my-p.cfg",
        "plugin.toml",
        "policy.sh",
        "tests/one.json",
    }
    files = {path for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert files == {tmp_path / "new" / path for path in made}
    assert (tmp_path / "new" / "policy.sh").read_text() == "lmetric for My-p"
    filled = (tmp_path / "new" / ".hidden" / "my-p.cfg").read_text()
    assert filled == "My-p my-p fake {name} {{other}}"


@pytest.mark.usefixtures("templates")
def test_a_languages_settings_stand_in_plugin_toml(tmp_path: Path) -> None:
    settings = {"max_memory_bytes": 33_554_432, "allowed_syscalls": ["wasi:clocks"]}
    language = fake_language(settings=settings)
    new_plugin(tmp_path / "new", "p", language, "lmetric")
    project = read_project(tmp_path / "new", [language])
    assert project.settings == {**settings, "isolation": "shared"}


@pytest.mark.usefixtures("templates")
def test_where_it_may_be_made(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    new_plugin(tmp_path / "empty", "p", FAKE, "lmetric")
    new_plugin(tmp_path / "a" / "b", "p", FAKE, "lmetric")
    assert (tmp_path / "a" / "b" / "plugin.toml").exists()


@pytest.mark.usefixtures("templates")
def test_nothing_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / ".git").touch()
    (tmp_path / "file").touch()
    for folder in (tmp_path / "full", tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match="--dir"):
            new_plugin(folder, "p", FAKE, "lmetric")
    assert [path.name for path in (tmp_path / "full").iterdir()] == [".git"]


@pytest.mark.usefixtures("templates")
@pytest.mark.parametrize("name", ["", "../up", "a b", "-x", "least_load", "system", "x" * 65])
def test_names_that_no_plugin_has(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        new_plugin(tmp_path / "new", name, FAKE, "lmetric")
    assert not (tmp_path / "new").exists()


@given(NAMES)
def test_a_package_can_have_the_name(name: str) -> None:
    """Cargo, npm and Go each refuse some names; these none of them does."""
    crate = crate_name(name)
    assert re.fullmatch(r"[a-z][a-z0-9_-]*", crate)
    assert crate.endswith(name.lower())
    assert crate not in ("std", "cmd")


# ---- the kit's own ----


@each_language
@pytest.mark.parametrize("policy", POLICIES)
def test_a_folder_of_each_language_and_policy(
    language: Language, policy: str, tmp_path: Path
) -> None:
    folder = tmp_path / "made"
    made = {str(path) for path in new_plugin(folder, "9-Lives", language, policy)}
    assert {"plugin.toml", "README.md", ".gitignore", language.policy_file} <= made
    for path in made:
        content = (folder / path).read_bytes()
        assert not re.search(rb"\{\{(name|crate|language)\}\}", content + path.encode()), path
    project = read_project(folder)
    assert (project.name, project.language) == ("9-Lives", language.name)
    assert project.settings.items() >= language.settings.items()
    needs = set(orjson.loads(project.manifest)["needs"])
    assert needs == ({"pending_tokens", "prefix_match"} if policy == "lmetric" else set())
    assert needs <= KNOWN_NEEDS
    tests = [orjson.loads(path.read_bytes()) for path in (folder / "tests").glob("*.json")]
    assert tests
    assert all({"description", "input", "output"} <= test.keys() for test in tests)


@pytest.mark.parametrize("policy", POLICIES)
def test_only_the_policy_and_its_toolchain_differ_between_languages(
    policy: str, tmp_path: Path
) -> None:
    found = set()
    for language in LANGUAGES:
        new_plugin(tmp_path / language.name, "p", language, policy)
        project = read_project(tmp_path / language.name)
        tests = sorted((project.folder / "tests").iterdir())
        found.add((project.manifest, *((path.name, path.read_bytes()) for path in tests)))
    assert len(found) == 1


@each_language
def test_what_is_built_is_not_kept_by_git(language: Language, tmp_path: Path) -> None:
    new_plugin(tmp_path / "made", "p", language, POLICIES[0])
    ignored = (tmp_path / "made" / ".gitignore").read_text().splitlines()
    assert {"build", "build/", "/build", "/build/"} & set(ignored)


def test_a_component_is_made_of_the_routers_own_contract(tmp_path: Path) -> None:
    contract = Path(scaffold.__file__).parents[1] / "wasm" / "wit" / "policy.wit"
    for language in LANGUAGES:
        made = new_plugin(tmp_path / language.name, "p", language, POLICIES[0])
        assert (Path("wit/policy.wit") in made) == (language.name == "python")
        if language.name == "python":
            assert (
                tmp_path / "python" / "wit" / "policy.wit"
            ).read_bytes() == contract.read_bytes()
