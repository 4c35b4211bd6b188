"""With the real tools: what each language's folder is built to, and what it says where it fails."""

import re

import pytest

from sgl_router.devkit.build import build
from sgl_router.devkit.language import Language
from sgl_router.devkit.languages import LANGUAGES
from sgl_router.devkit.project import read_project
from sgl_router.devkit.toolchains import runner
from sgl_router.errors import BuildError
from sgl_router.testing.settings import BUILTIN_NAMES
from sgl_router.wasm.module import check_module
from tests.devkit.built import built, workshop

each_language = pytest.mark.parametrize("language", LANGUAGES, ids=lambda one: one.name)


@each_language
def test_a_new_folder_is_built_to_a_module_that_is_loaded(language: Language) -> None:
    module = built(language.name, "least_connections")
    project = read_project(module.parents[1])
    assert module == project.module
    checked = check_module(project.config(), module.read_bytes(), BUILTIN_NAMES)
    assert checked.manifest.version == project.version == "0.1.0"
    assert not checked.manifest.needs
    assert not checked.manifest.reads_body
    assert checked.manifest.config_schema


@each_language
def test_an_error_names_the_file_and_nothing_is_built(language: Language) -> None:
    with workshop(language.name, "least_connections") as project:
        policy = project.folder / language.policy_file
        policy.write_text(f") broken (\n{policy.read_text()}")
        with pytest.raises(BuildError) as failed:
            build(project, runner())
        where = rf"{re.escape(policy.name)}\W+(line )?1\b"
        assert re.search(where, failed.value.output), failed.value.output
        assert not project.module.exists()
