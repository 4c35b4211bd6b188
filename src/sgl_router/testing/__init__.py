"""Tries plugins without a router, for their authors' tests.

    from sgl_router.testing import check_conformance

    def test_my_policy_keeps_the_contract() -> None:
        report = check_conformance(Path("build/my_policy.wasm"))
        assert report.conforms, str(report)

Or without a line of Python: `pytest --policy-plugin build/my_policy.wasm`.

What is named here is imported when it is first used: pytest loads this package in every run.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgl_router.testing.answer import Answer, Failure
    from sgl_router.testing.case import CaseRequest, DecisionCase, TokenMatch, load_input
    from sgl_router.testing.conformance import check_conformance, check_names
    from sgl_router.testing.golden import GoldenCase, GoldenResult, load_golden, run_golden
    from sgl_router.testing.host import Host, PluginHost
    from sgl_router.testing.report import CheckResult, Report
    from sgl_router.testing.settings import golden_folder, settings_for

__all__ = [
    "Answer",
    "CaseRequest",
    "CheckResult",
    "DecisionCase",
    "Failure",
    "GoldenCase",
    "GoldenResult",
    "Host",
    "PluginHost",
    "Report",
    "TokenMatch",
    "check_conformance",
    "check_names",
    "golden_folder",
    "load_golden",
    "load_input",
    "run_golden",
    "settings_for",
]

_MODULES = {
    "answer": ("Answer", "Failure"),
    "case": ("CaseRequest", "DecisionCase", "TokenMatch", "load_input"),
    "conformance": ("check_conformance", "check_names"),
    "golden": ("GoldenCase", "GoldenResult", "load_golden", "run_golden"),
    "host": ("Host", "PluginHost"),
    "report": ("CheckResult", "Report"),
    "settings": ("golden_folder", "settings_for"),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULE_OF.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{module}"), name)
