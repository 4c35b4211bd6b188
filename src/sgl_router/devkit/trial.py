"""Tries a plugin out: conformance checks and golden decisions. `sgl-router plugin test` runs it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sgl_router.devkit.target import Target
from sgl_router.testing.conformance import check_conformance, check_names
from sgl_router.testing.golden import GoldenResult, load_golden, run_golden
from sgl_router.testing.host import PluginHost, own_runtime
from sgl_router.testing.report import CheckResult, Report
from sgl_router.wasm.module import read_file

Progress = Callable[[str, int], None]
"""Told what is done next, and of how many things in all."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of a plugin's tests.

    Attributes:
        report: of the conformance checks.
        golden: of its golden decisions; none where it does not load.
    """

    report: Report
    golden: Sequence[GoldenResult]

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return self.report.conforms and all(one.outcome != "failed" for one in self.golden)

    def count(self, outcome: str) -> int:
        """Of checks and golden decisions together."""
        results: list[CheckResult | GoldenResult] = [*self.report.results, *self.golden]
        return sum(result.outcome == outcome for result in results)


def try_plugin(target: Target, progress: Progress | None = None) -> Trial:
    """Make every conformance check, then ask every golden decision twice.

    Raises ConfigError where a golden decision cannot be read, OSError where the module cannot.
    """
    golden = load_golden(target.tests)
    wasm = read_file(str(target.module))
    total = len(check_names()) + len(golden)

    def tell(what: str) -> None:
        if progress is not None:
            progress(what, total)

    runtime = own_runtime()
    try:
        tell("compiling")
        report = check_conformance(
            wasm,
            settings=target.config,
            host=partial(PluginHost, runtime=runtime),
            on_result=lambda result: tell(result.name),
        )
        if report.abi is None:
            return Trial(report, [])
        host = PluginHost(wasm, target.config, runtime)
        results = []
        for one in golden:
            results.append(run_golden(host, one))
            tell(one.name)
        return Trial(report, results)
    finally:
        runtime.close()
