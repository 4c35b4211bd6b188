"""The examples' golden decisions: for each input, what the compiled plugin answers.

They are run on the plugins that come with the package, or on those in `--plugin-dir DIR`.
"""

from pathlib import Path
from typing import Any

import orjson
import pytest

from sgl_router.policies import shipped_plugins
from sgl_router.wasm.module import check_module
from tests.conftest import leave_out
from tests.wasm.guests import BUILTIN_NAMES, Bench
from tests.wasm.table_guests import golden_choice

EXAMPLES = Path(__file__).parents[2] / "examples" / "wasm_plugins"
GOLDEN = sorted(EXAMPLES.glob("*/tests/*.json"))


def name_of(golden: Path) -> str:
    return f"{golden.parent.parent.name}/{golden.stem}"


def module_of(plugin: str, folder: str | None) -> Path:
    """The compiled plugin."""
    if folder is not None:
        path = Path(folder) / f"{plugin}.wasm"
        if not path.is_file():
            pytest.fail(f"there is no {path.name} in {folder} (option --plugin-dir)")
        return path
    shipped = shipped_plugins()
    if plugin not in shipped:
        leave_out(f"{plugin} does not come with the package; build it and give --plugin-dir")
    return shipped[plugin]


def test_every_shipped_plugin_has_golden_decisions() -> None:
    assert shipped_plugins().keys() <= {golden.parent.parent.name for golden in GOLDEN}


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_a_golden_decision(golden: Path, bench: Bench, request: pytest.FixtureRequest) -> None:
    plugin = golden.parent.parent.name
    module = module_of(plugin, request.config.getoption("--plugin-dir", default=None))
    case: dict[str, Any] = orjson.loads(golden.read_bytes())
    given, wasm = case["input"], module.read_bytes()
    if check_module(bench.config(wasm, plugin), wasm, BUILTIN_NAMES).abi == "table_v1":
        assert golden_choice(wasm, given) == case["output"]["selected_worker"], case["description"]
        return
    instance = bench.instance(wasm, name=plugin, max_execution_time_ms=5_000)
    result = instance.select_worker(orjson.dumps(given), given["now_ms"], given["entropy"])
    answer = orjson.loads(result)
    for key, expected in case["output"].items():
        found = answer.get(key)
        if key == "error" and expected is True:
            assert isinstance(found, str), case["description"]
        else:
            assert found == expected, case["description"]
            assert type(found) is type(expected), case["description"]
    assert not instance.poisoned
