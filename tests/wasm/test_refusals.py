"""Each kind of refusal is said of a real plugin, by the words that stand in the documents."""

from typing import get_args

import pytest

from sgl_router.errors import PluginRefused
from sgl_router.wasm.refusals import Reason, RefusalCode, refusals
from tests.wasm.guests import Bench
from tests.wasm.provocations import PROVOCATIONS, Scene

CODES: tuple[RefusalCode, ...] = get_args(RefusalCode)


def test_each_code_has_its_texts_and_is_provoked() -> None:
    assert list(refusals()) == list(CODES)
    assert PROVOCATIONS.keys() == set(CODES)


@pytest.mark.parametrize("code", CODES)
async def test_a_refusal_has_its_code_and_says_what_the_documents_show(
    code: RefusalCode, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refused = await PROVOCATIONS[code](Scene(bench, patch))
    assert set(refused.codes) == {code}
    assert refused.reasons[0] == refusals()[code].example


def test_a_refusal_tells_each_reason_with_its_code() -> None:
    reasons = [Reason("file_empty", f"reason {number}") for number in range(25)]
    refused = PluginRefused("mine", reasons)
    assert refused.reasons == tuple(reason.text for reason in reasons)
    assert refused.codes == ("file_empty",) * 25
    assert "reason 19 [file_empty]; and 5 more" in str(refused)
    assert "reason 20" not in str(refused)
    assert PluginRefused("mine", reasons[:20]).shown().endswith("reason 19 [file_empty]")
