"""A plugin that decides in shadow of a real router: it is compared, and no request notices."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import orjson
import pytest

from sgl_router.core.shadow_run import MAX_WAITING
from sgl_router.policies import shipped_plugins
from sgl_router.wasm import version
from sgl_router.wasm.manifest import SECTION
from tests.gateway.inside import context_of
from tests.gateway.support import (
    EngineSocket,
    Placements,
    Request,
    ScriptedEngine,
    answering,
    connected,
    respond,
    until,
)
from tests.server.support import PATIENT, Desk, choosing, engines, held, plugged, traffic
from tests.wasm.guests import ANSWER_AT, LOOP, guest

BODY = b'{"prompt": "%b"}' % (b"x" * 4000)


def turning(body: str) -> bytes:
    """A plugin that passes its trial, and does what `body` says where it is asked `BODY`."""
    return guest(
        select_worker=f"(if (i32.gt_u (local.get $len) (i32.const 3000)) (then {body}))"
        f"(i32.const {ANSWER_AT})"
    )


@asynccontextmanager
async def shadowed(
    wasm: bytes, settings: dict[str, Any] = PATIENT, share: float = 1, **router: Any
) -> AsyncIterator[Desk]:
    """A router before two engines with `tried` in its shadow."""
    async with engines() as urls, plugged(*urls, **router) as desk:
        status, said = await desk.put("tried", wasm, settings)
        assert status == 201, said
        await start(desk, share)
        yield desk


async def start(desk: Desk, share: float = 1, plugin: str = "tried") -> None:
    status, said = await desk.ask("PUT", "/shadow", {"plugin": plugin, "share": share})
    assert status == 200, said
    assert (said["shadow"]["plugin"], said["shadow"]["observed"]) == (plugin, 0)
    assert (await desk.shown(plugin))["in_use_as"] == ["shadow"]


async def reported(desk: Desk, condition: Callable[[Any], object]) -> Any:
    """The first report of which it is so."""

    def now() -> Any:
        report = desk.server.plugins.shadow()
        assert report is not None, "it runs"
        return asdict(report)

    await until(lambda: condition(now()), now)
    return await desk.shadow()


def answered(count: int, report: Any) -> bool:
    """Whether so many were observed, and none of them waits."""
    told = report["decided"] + sum(report["failures"].values()) + report["skipped"]
    return bool(report["observed"] == told == count)


def loads(report: Any) -> list[int]:
    return [worker["would_be_load"] for worker in report["workers"]]


@pytest.mark.parametrize("name", ["weighted_random", "least_connections", "power_of_two_table"])
async def test_what_decides_like_the_policy_in_use_agrees_with_it_always(name: str) -> None:
    wasm = shipped_plugins()[name].read_bytes()
    entropy = partial(random.Random(7).getrandbits, 53)
    async with engines(3) as urls, plugged(*urls, policy=name, entropy=entropy) as desk:
        await desk.put("tried", wasm)
        await start(desk)
        async with connected(desk) as client:
            for _ in range(30):
                assert (await client.post()).status == 200
        report = await reported(desk, partial(answered, 30))
        assert (report["agreement"], report["agreed"], report["failures"]) == (1.0, 30, {})
        assert report["policy"] == name
        for worker in report["workers"]:
            assert worker["requests"] == worker["would_be_requests"]
            assert worker["would_be_load"] == 0
        assert report["decision_us"]["max"] > 0


async def test_what_decides_otherwise_is_shown_where_it_would_have_placed() -> None:
    async with shadowed(choosing(1), policy="round_robin") as desk, connected(desk) as client:
        for _ in range(10):
            assert (await client.post()).status == 200
        report = await reported(desk, partial(answered, 10))
        assert report["agreement"] == 0.5
        by_url = {worker["url"]: worker for worker in report["workers"]}
        really = [by_url[worker.url]["requests"] for worker in desk.server.registry]
        would = [by_url[worker.url]["would_be_requests"] for worker in desk.server.registry]
        assert (really, would) == ([5, 5], [0, 10])


async def test_its_share_of_the_requests_is_observed() -> None:
    entropy = partial(random.Random(7).getrandbits, 53)
    async with (
        shadowed(choosing(1), share=0.25, entropy=entropy) as desk,
        connected(desk) as client,
    ):
        for _ in range(200):
            assert (await client.post()).status == 200
        report = await desk.shadow()
        assert 20 < report["observed"] < 80


# ---- a candidate that misbehaves


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("(unreachable)", "trap"),
        (LOOP, "timeout"),
        ("(return (i32.const 0))", "bad_output"),
        (f"(i32.store8 (i32.const {ANSWER_AT + 20}) (i32.const 55))", "out_of_range"),
    ],
)
async def test_one_that_fails_fails_no_request(body: str, kind: str) -> None:
    """It is quarantined after a while, as any plugin; both are counted."""
    placements = Placements()
    settings = {"max_execution_time_ms": 20} if kind == "timeout" else PATIENT
    async with shadowed(turning(body), settings, placements=placements) as desk:
        for count in range(1, 9):  # one after the other, so that none waits for too long
            await desk.placed(BODY)
            report = await reported(desk, partial(answered, count))
        assert report["failures"].keys() <= {kind, "quarantined"}
        assert report["failures"][kind] >= 5
        assert report["failures"]["quarantined"] >= 1
        assert (report["decided"], report["agreement"], report["decision_us"]) == (0, None, None)
        assert set(loads(report)) == {0}
        assert (await desk.shown("tried"))["quarantine"]["state"] == "open"
    assert [decision.failure for decision, _ in placements.done] == [None] * 8
    assert all(outcome.success for _, outcome in placements.done)


async def test_one_that_never_returns_holds_up_no_request() -> None:
    """What it cannot keep up with is skipped, and counted as such."""
    settings = {"max_execution_time_ms": 30_000}
    more = 10
    async with shadowed(turning(LOOP), settings) as desk, connected(desk) as client:
        for _ in range(MAX_WAITING + more):
            assert (await client.post(body=BODY)).status == 200
        report = await desk.shadow()
        assert (report["observed"], report["skipped"]) == (MAX_WAITING + more, more)
        assert (report["decided"], report["failures"]) == (0, {})
        assert (await desk.shown("tried"))["waiting"] == MAX_WAITING
        _, said = await desk.ask("DELETE", "/shadow")
        assert said["shadow"]["skipped"] == more
        assert (await client.post(body=BODY)).status == 200


async def test_a_plugin_in_use_is_not_held_up_by_one_in_its_shadow() -> None:
    async with shadowed(turning(LOOP), {"max_execution_time_ms": 30_000}) as desk:
        await desk.put("mine", choosing(1))
        await desk.use("mine")
        for _ in range(5):
            assert await desk.placed(BODY) == 1
        assert (await desk.shown("mine"))["current"]["decisions"] == 5
        assert (await desk.shadow())["decided"] == 0


async def test_no_load_is_left_behind() -> None:
    """While a request runs, it is in flight where the candidate would have it."""

    async def slow(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            await until(lambda: done)
            await socket.send(respond(b"0"))

    done: list[bool] = []
    async with (
        ScriptedEngine(slow) as one,
        ScriptedEngine(slow) as two,
        plugged(one.url, two.url) as desk,
    ):
        await desk.put("tried", choosing(1))
        await start(desk)
        async with connected(desk) as first, connected(desk) as second:
            await first.send(post())
            await second.send(post())
            report = await reported(desk, partial(answered, 2))
            assert sorted(loads(report)) == [0, 2]
            done.append(True)
            assert (await first.response()).status == 200
            second.writer.transport.abort()
            report = await reported(desk, lambda report: not any(loads(report)))
            assert sorted(w["would_be_peak_load"] for w in report["workers"]) == [0, 2]


def post(body: bytes = b"{}") -> bytes:
    return b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


# ---- what it needs is there while it runs


def needing(*needs: str) -> bytes:
    return choosing(1, sections={SECTION: orjson.dumps({"needs": needs})})


async def test_what_it_needs_is_kept_while_it_runs_and_no_longer() -> None:
    needs = ("body", "prefix_match", "engine_metrics", "pending_tokens")
    async with engines() as urls, plugged(*urls) as desk:
        dispatcher = context_of(desk.server).dispatcher
        await desk.put("tried", needing(*needs[1:]))
        assert not dispatcher.needs & set(needs)
        await start(desk)
        assert dispatcher.needs >= set(needs)
        async with traffic(desk) as sent:
            await sent.more()
        await desk.ask("DELETE", "/shadow")
        assert not dispatcher.needs & set(needs)
        await desk.placed(BODY)
        assert not any(worker.pending_tokens for worker in desk.server.registry)


async def test_it_reads_the_prompt_although_the_policy_in_use_does_not() -> None:
    """The guest looks for a mark in what it is given, and returns an error where there is none."""
    reads = guest(
        '{"error": "no mark"}',
        extra='(data (i32.const 2048) "{\\22selected_worker\\22: 1}")',
        select_worker="""
          (local $end i32) (local.set $end (i32.add (local.get $ptr) (local.get $len)))
          (block $nowhere (loop $next
            (br_if $nowhere (i32.ge_u (local.get $ptr) (local.get $end)))
            (if (i32.eq (i32.load8_u (local.get $ptr)) (i32.const 126))
              (then (return (i32.const 2048))))
            (local.set $ptr (i32.add (local.get $ptr) (i32.const 1)))
            (br $next)))
          (i32.const 1024)""",
    )
    async with shadowed(reads) as desk:
        await desk.placed(b'{"prompt": "a ~ is the mark"}')
        report = await reported(desk, partial(answered, 1))
        assert (report["decided"], report["failures"]) == (1, {})
        await desk.placed(b'{"prompt": "none"}')
        report = await reported(desk, partial(answered, 2))
        assert report["failures"] == {"plugin_error": 1}


async def test_engines_are_asked_for_their_metrics_for_it() -> None:
    asked: list[Request] = []
    page = b"vllm:num_requests_running 3\nvllm:num_requests_waiting 4\n"
    async with (
        ScriptedEngine(answering(respond(page), asked)) as engine,
        plugged(engine.url, engine_metrics_interval_secs=0.05) as desk,
    ):
        await desk.put("tried", guest(sections={SECTION: b'{"needs": ["engine_metrics"]}'}))
        (worker,) = desk.server.registry
        assert worker.metrics is None
        await start(desk)
        await until(lambda: worker.metrics is not None and worker.metrics.running == 3)


# ---- coming and going


async def test_another_version_is_counted_from_nought() -> None:
    async with shadowed(choosing(1)) as desk:
        await desk.placed()
        await reported(desk, partial(answered, 1))
        await desk.put("tried", choosing(0))
        report = await desk.shadow()
        assert (report["observed"], report["share"]) == (0, 1)
        assert report["version"] == (await desk.shown("tried"))["current"]["id"]
        await desk.placed()
        await reported(desk, partial(answered, 1))


async def test_what_is_promoted_decides_and_no_longer_in_shadow() -> None:
    async with shadowed(choosing(1)) as desk, traffic(desk) as sent:
        await reported(desk, lambda report: report["decided"])
        status, said = await desk.ask("POST", "/shadow/promote")
        assert (status, said["policies"][0]["policy"]) == (200, "tried")
        assert await desk.shadow() is None
        assert (await desk.shown("tried"))["in_use_as"] == ["regular"]
        await sent.more(1)
        promoted_at = len(sent.engines)
        await sent.more(10)
        assert set(sent.engines[promoted_at:]) == {1}


async def test_to_use_it_ends_its_shadow() -> None:
    async with shadowed(choosing(1)) as desk:
        await desk.use("tried")
        assert await desk.shadow() is None
        assert await desk.placed() == 1
        await desk.use("round_robin")
        assert (await desk.ask("DELETE", "/plugins/tried"))[0] == 200


async def test_another_takes_its_place() -> None:
    async with shadowed(choosing(1)) as desk:
        await desk.placed()
        await start(desk, plugin="least_connections")  # which comes with the router
        assert (await desk.shown("tried"))["in_use_as"] == []
        assert (await desk.ask("DELETE", "/plugins/tried"))[0] == 200
        await desk.placed()
        await reported(desk, partial(answered, 1))


async def test_a_policy_that_is_switched_is_compared_from_then_on() -> None:
    async with shadowed(choosing(1)) as desk:
        await desk.use("random")
        report = await desk.shadow()
        assert (report["policy"], report["plugin"]) == ("random", "tried")
        await desk.placed()
        await reported(desk, partial(answered, 1))


async def test_it_goes_on_while_requests_that_it_was_asked_for_are_under_way() -> None:
    """They end, whether the run has, or its plugin."""

    async def slow(socket: EngineSocket) -> None:
        while await socket.request() is not None:
            await until(lambda: done)
            await socket.send(respond(b"0"))

    done: list[bool] = []
    async with ScriptedEngine(slow) as engine, plugged(engine.url) as desk:
        await desk.put("tried", guest())
        await start(desk)
        async with connected(desk) as client:
            await client.send(post())
            await reported(desk, partial(answered, 1))
            await desk.ask("DELETE", "/shadow")
            assert (await desk.ask("DELETE", "/plugins/tried"))[0] == 200
            done.append(True)
            assert (await client.response()).status == 200


@pytest.mark.parametrize("end", [("POST", "/shadow/promote"), ("DELETE", "/shadow")])
async def test_decisions_that_come_when_the_run_is_over(
    end: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They were asked for while it was under way, of a policy that takes its time."""
    monkeypatch.setattr(version, "FITS_TO_RETURN", 1)
    async with engines() as urls, plugged(*urls) as desk:
        for name, index in (("slow", 0), ("tried", 1)):
            assert (await desk.put(name, choosing(index)))[0] == 201
        await desk.use("slow")
        await start(desk)
        await desk.placed()
        await reported(desk, partial(answered, 1))

        async def post() -> int:
            async with connected(desk) as client:
                return (await client.post()).status

        slow = desk.policy("slow")
        with held(slow) as go:
            asked = [asyncio.ensure_future(post()) for _ in range(3)]
            await until(lambda: slow.current.waiting >= 4, lambda: slow.current.waiting)
            assert (await desk.ask(*end))[0] == 200
            assert not desk.policy("tried").current.offloaded
            go.set()
            assert await asyncio.gather(*asked) == [200] * 3
