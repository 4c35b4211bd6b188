"""What a running router tells of its plugins."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.support import (
    Client,
    ScriptedEngine,
    answering,
    connected,
    respond,
    running,
    until,
)
from tests.wasm.guests import guest, on_long

GOOD = guest()
FRAGILE = guest(select_worker=on_long("unreachable"))
LONG = b'{"prompt": "%b"}' % (b"x" * 2_000)

Page = dict[str, list[tuple[dict[str, str], float]]]


async def page_of(client: Client) -> Page:
    """Samples by name."""
    page: Page = {}
    for family in text_string_to_metric_families(
        (await client.ask(b"GET", b"/metrics")).body.decode()
    ):
        for sample in family.samples:
            page.setdefault(sample.name, []).append((sample.labels, sample.value))
    return page


def of_plugins(page: Page, name: str) -> dict[str, float]:
    found = page.get(f"sgl_router_plugin_{name}", [])
    return {labels["plugin"]: value for labels, value in found}


async def test_a_plugin_that_fails_and_is_swapped(tmp_path: Path) -> None:
    path = tmp_path / "mine.wasm"
    path.write_bytes(FRAGILE)
    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, plugin=[str(path)], policy="mine", plugin_store="none") as server,
        connected(server) as client,
    ):
        before = await page_of(client)
        for _ in range(5):
            assert (await client.post(b"/v1/completions", LONG)).status == 200
        failed = await page_of(client)
        await server.plugins.put_plugin("mine", GOOD, {})
        swapped = await page_of(client)
        await server.plugins.roll_back_plugin("mine")
        returned = await page_of(client)
    pages = (before, failed, swapped, returned)
    states = [of_plugins(page, "quarantine_state")["mine"] for page in pages]
    assert states == [0, 1, 0, 0]
    assert [of_plugins(page, "quarantines_total")["mine"] for page in pages] == [0, 1, 1, 1]
    assert [of_plugins(page, "swaps_total")["mine"] for page in pages] == [0, 0, 1, 2]
    digests = [[labels["sha256"] for labels, _ in page["sgl_router_plugin_info"]] for page in pages]
    assert digests[0] == digests[1] == digests[3] != digests[2]
    assert of_plugins(swapped, "memory_bytes")["mine"] >= 65_536
    failures = failed["sgl_router_policy_failures_total"]
    assert failures == [({"policy": "mine", "kind": "trap"}, 5)]


async def test_a_plugin_in_shadow(tmp_path: Path) -> None:
    path = tmp_path / "mine.wasm"
    path.write_bytes(FRAGILE)

    def answered() -> bool:
        report = server.plugins.shadow()
        return report is not None and report.decided + sum(report.failures.values()) == 4

    async with (
        ScriptedEngine(answering(respond())) as engine,
        running(engine.url, plugin=[str(path)], plugin_store="none") as server,
        connected(server) as client,
    ):
        assert "sgl_router_shadow_decisions_total" not in await page_of(client)
        await server.plugins.start_shadow("mine", 1.0, "regular")
        for body in (b"{}", b"{}", b"{}", LONG):
            assert (await client.post(b"/v1/completions", body)).status == 200
        await until(answered)
        page = await page_of(client)
    assert of_plugins(page, "offloaded") == {"mine": 1}
    outcomes = {
        labels["outcome"]: value for labels, value in page["sgl_router_shadow_decisions_total"]
    }
    assert outcomes == {"agreed": 3, "differed": 0, "failed": 1, "skipped": 0}
    assert "sgl_router_policy_failures_total" not in page, "its failures cost no request"
