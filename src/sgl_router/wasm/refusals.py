"""Why a plugin is refused: every kind of refusal has a code, a cause and a remedy.

What refuses makes a `Reason`: its text says what was found and what was expected, its code is
stable and says where to read on. Cause and remedy of each code stand in `refusals.toml`.

To add a kind: its code below, its entry in `refusals.toml`, its Chinese in
`scripts/why_refused.zh-CN.toml`, and in `tests/wasm/provocations.py` what provokes it; tests fail
where one of them is missing. Then `scripts/write_refusals.py` writes `docs/why-refused*.md`.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

RefusalCode = Literal[
    # its name and its settings
    "name_invalid",
    "name_reserved",
    "name_taken",
    "setting_unknown",
    "setting_out_of_range",
    "choice_unknown",
    "lane_with_files",
    "fallback_unknown",
    "sha256_invalid",
    "syscalls_not_a_list",
    "syscall_unknown",
    "syscall_is_network",
    "config_not_an_object",
    "config_not_json",
    "config_too_large",
    # its file
    "file_unreadable",
    "file_empty",
    "file_too_large",
    "digest_mismatch",
    "not_a_module",
    "module_malformed",
    "module_too_complex",
    "types_not_allowed",
    # what it imports
    "import_not_granted",
    "import_unknown",
    "import_is_network",
    "import_not_a_function",
    "import_wrong_type",
    # what it exports
    "decides_nothing",
    "export_missing",
    "export_not_a_function",
    "export_wrong_type",
    # as a component
    "component_interface_missing",
    "component_wrong_type",
    "component_import",
    "component_builtin",
    # its memory
    "memory_at_start",
    "memory_not_exported",
    "memory_not_plain",
    "memory_empty",
    "memories_many",
    "tables_many",
    "data_beyond_memory",
    # its manifest
    "manifest_too_large",
    "manifest_not_json",
    "manifest_abi",
    "manifest_needs",
    "manifest_need_unknown",
    "manifest_reads_body",
    "manifest_body_needed",
    "schema_invalid",
    "schema_keyword",
    "config_mismatch",
    # compiling it
    "module_invalid",
    "compile_memory",
    "compile_time",
    "compile_size",
    "compile_failed",
    # trying it out
    "trial_trap",
    "trial_timeout",
    "trial_out_of_memory",
    "trial_bad_output",
    "trial_bad_choice",
    "trial_plugin_error",
    # the router
    "folder_unavailable",
    "router_stopping",
]


@dataclass(frozen=True, slots=True)
class Reason:
    """One thing for which a plugin is refused.

    Attributes:
        code: of what kind it is.
        text: a sentence with what was found and what was expected, already cut and escaped.
    """

    code: RefusalCode
    text: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A kind of refusal, for whoever has never seen WebAssembly. Texts are Markdown.

    Attributes:
        about: what is refused of a plugin: its settings, its file and so on.
        cause: what is wrong with it.
        remedy: what to do, with the setting or the command that changes it.
        example: a `Reason`'s text, as the router says it.
    """

    about: str
    cause: str
    remedy: str
    example: str


@cache
def refusals() -> Mapping[RefusalCode, Refusal]:
    """Every kind, in the order of the pages."""
    text = (files(__package__) / "refusals.toml").read_text(encoding="utf-8")
    return {
        code: Refusal(about, **entry)
        for about, entries in tomllib.loads(text).items()
        for code, entry in entries.items()
    }
