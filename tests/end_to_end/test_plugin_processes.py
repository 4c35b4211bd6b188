"""Plugins of a router process: what SIGHUP takes over, and its end while it is busy with them."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.process import RouterProcess, launched
from tests.gateway.support import ScriptedEngine, answering, connected, respond, until, within
from tests.server.support import ask, choosing, engines, placed
from tests.wasm.guests import ANSWER_AT, LOOP, guest

LARGE = b'{"prompt": "%b"}' % (b"x" * 4000)
POST = b"POST /v1/x HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (len(LARGE), LARGE)


class Settings:
    """The configuration file of a router, which can be changed."""

    def __init__(self, folder: Path, urls: list[str]) -> None:
        self.path = folder / "router.yaml"
        self._given: dict[str, Any] = {
            "worker_urls": urls,
            "disable_health_check": True,
            "plugin_store": "none",
            "policy": "round_robin",
        }

    def write(self, **changed: Any) -> None:
        self._given |= changed
        self.path.write_text(yaml.safe_dump(self._given))

    @contextmanager
    def launched(self) -> Iterator[RouterProcess]:
        with launched("--config", str(self.path)) as process:
            yield process


async def told(process: RouterProcess, *said: str) -> str:
    """The first line of the log that says one of these."""
    while True:
        line = await within(process.next_line())
        assert line, "it has ended"
        if any(each in line for each in said):
            return line


async def hang_up(process: RouterProcess) -> str:
    """Have the settings read again; what came of it."""
    process.process.send_signal(signal.SIGHUP)
    return await told(process, "were read again")


async def shown(process: RouterProcess, name: str) -> Any:
    status, said = await ask(process, "GET", f"/plugins/{name}")
    assert status == 200, said
    return said


async def test_settings_are_taken_over_at_sighup(tmp_path: Path) -> None:
    """And what cannot be used changes nothing; the router serves all the while."""
    mine, other = tmp_path / "mine.wasm", tmp_path / "other.wasm"
    mine.write_bytes(choosing(0))
    other.write_bytes(choosing(1))
    async with engines() as urls:
        settings = Settings(tmp_path, urls)
        settings.write(plugin=[str(mine)], policy="mine")
        with settings.launched() as process:
            assert await placed(process) == 0
            limits = {"max_execution_time_ms": 77, "config": {"a": 1}, "fallback": "random"}
            settings.write(plugin_config={"mine": limits})
            assert "not taken over" not in await hang_up(process)
            current = (await shown(process, "mine"))["current"]
            assert current["settings"] | limits == current["settings"]

            settings.write(plugin=[str(mine), str(other)], policy="other", retry_max_retries=1)
            assert "not taken over" not in await hang_up(process)
            assert "retry_max_retries" in await told(process, "at a restart only")
            assert await placed(process) == 1

            before = await ask(process, "GET", "/policy")
            settings.write(policy="nobody")
            assert "nobody" in await hang_up(process)
            settings.path.write_text("policy: [")
            assert "not taken over" in await hang_up(process)
            settings.path.unlink()
            assert "not taken over" in await hang_up(process)
            broken = tmp_path / "broken.wasm"
            broken.write_bytes(b"no plugin")
            settings.write(plugin=[str(mine), str(other), str(broken)], policy="other")
            assert "broken" in await hang_up(process)
            assert await ask(process, "GET", "/policy") == before
            assert await placed(process) == 1
            assert (await shown(process, "mine"))["swaps"] == 1

            broken.write_bytes(choosing(0))
            settings.write(policy="broken")
            assert "not taken over" not in await hang_up(process)
            assert await placed(process) == 0
            process.process.send_signal(signal.SIGTERM)
            assert await process.ended() == 0


async def test_a_file_that_changes_is_compiled_and_used(tmp_path: Path) -> None:
    mine = tmp_path / "mine.wasm"
    mine.write_bytes(choosing(0))
    async with engines() as urls:
        settings = Settings(tmp_path, urls)
        settings.write(policy=str(mine))
        with settings.launched() as process:
            assert await placed(process) == 0
            mine.write_bytes(choosing(1))
            await told(process, "swapped")
            assert await placed(process) == 1


async def test_an_upload_is_there_after_the_process_was_killed(tmp_path: Path) -> None:
    async with engines() as urls:
        settings = Settings(tmp_path, urls)
        settings.write(plugin_store=str(tmp_path / "store"))
        with settings.launched() as process:
            status, said = await ask(process, "PUT", "/plugins/mine", wasm=choosing(1))
            assert status == 201, said
            process.process.kill()
        settings.write(policy="mine")
        with settings.launched() as process:
            assert await placed(process) == 1


# ---- the end, row 38


async def compiling(pid: int) -> int:
    """The process that a router's thread has started to compile, which is halted."""

    def children() -> list[int]:
        found = []
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
        return [child for child in found if b"compile_child" in command_of(child)]

    await until(children, lambda: f"{pid} compiles nothing")
    (child,) = children()
    os.kill(child, signal.SIGSTOP)
    return child


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it ended just now
        return b""


def put(wasm: bytes, settings: str = "") -> bytes:
    return b"PUT /plugins/mine%b HTTP/1.1\r\nHost: r\r\nContent-Length: %d\r\n\r\n%b" % (
        settings.encode(),
        len(wasm),
        wasm,
    )


def unique(request: pytest.FixtureRequest, **parts: Any) -> bytes:
    """A module that no other test has had compiled."""
    return guest(sections={"test": request.node.name.encode()}, **parts)


@contextmanager
def router(*arguments: str) -> Iterator[RouterProcess]:
    with launched("--plugin-store", "none", "--disable-health-check", *arguments) as process:
        yield process


async def stopped(process: RouterProcess) -> int:
    process.process.send_signal(signal.SIGTERM)
    return await within(process.ended())


async def test_38_a_compilation_that_nobody_waits_for(request: pytest.FixtureRequest) -> None:
    with router() as process:
        async with connected(process) as client:
            await client.send(put(unique(request)))
            child = await compiling(process.process.pid)
        assert await stopped(process) == 0
        assert not command_of(child)


async def test_38_a_compilation_that_is_waited_for_is_finished(
    request: pytest.FixtureRequest,
) -> None:
    with router() as process:
        async with connected(process) as client:
            await client.send(put(unique(request)))
            child = await compiling(process.process.pid)
            process.process.send_signal(signal.SIGTERM)
            await told(process, "stopping")
            os.kill(child, signal.SIGCONT)
            assert (await client.response()).status == 201
        assert await within(process.ended()) == 0


async def test_38_a_compilation_that_takes_longer_than_the_grace_period(
    request: pytest.FixtureRequest,
) -> None:
    """It is cut off as any request is, and the exit status says so."""
    with router("--shutdown-grace-period-secs", "0.1") as process:
        async with connected(process) as client:
            await client.send(put(unique(request)))
            child = await compiling(process.process.pid)
            assert await stopped(process) == 1
        assert not command_of(child)


async def test_38_a_compilation_and_a_second_signal(request: pytest.FixtureRequest) -> None:
    with router() as process:
        async with connected(process) as client:
            await client.send(put(unique(request)))
            child = await compiling(process.process.pid)
            process.process.send_signal(signal.SIGTERM)
            await told(process, "stopping")
            assert await stopped(process) == 1
        assert not command_of(child)


async def test_38_a_compilation_of_a_file_that_has_changed(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.wasm"
    mine.write_bytes(choosing(0))
    with router("--policy", str(mine)) as process:
        mine.write_bytes(unique(request))
        child = await compiling(process.process.pid)
        assert await stopped(process) == 0
        assert not command_of(child)


@contextmanager
def starting(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A router that does not listen yet."""
    command = [sys.executable, "-m", "sgl_router", "launch", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_38_a_compilation_before_it_listens(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    mine = tmp_path / "mine.wasm"
    mine.write_bytes(unique(request))
    with starting("--plugin-store", "none", "--policy", str(mine)) as process:
        child = await compiling(process.pid)
        process.send_signal(signal.SIGTERM)
        assert await within(asyncio.to_thread(process.wait, 30)) == 0
        assert not command_of(child)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


SPINS = f"(if (i32.gt_u (local.get $len) (i32.const 3000)) (then {LOOP}))(i32.const {ANSWER_AT})"


def limit(ms: int) -> str:
    return f"?settings=%7B%22max_execution_time_ms%22:{ms}%7D"


async def waiting(process: RouterProcess) -> None:
    """Wait until the plugin's thread has something to do."""
    for _ in range(2_000):
        if (await shown(process, "mine"))["waiting"]:
            return
    raise AssertionError("nobody has asked it")


@pytest.mark.parametrize("left", [False, True], ids=["waited for", "nobody waits"])
async def test_38_a_guest_that_spins_in_select_worker(left: bool) -> None:
    """Who waits for it is served by the fallback policy, once its time is up."""
    async with ScriptedEngine(answering(respond(b"0"))) as engine:
        with router("--worker-urls", engine.url) as process:
            ms = 30_000 if left else 1_000
            wasm = guest(select_worker=SPINS)
            status, said = await ask(process, "PUT", f"/plugins/mine{limit(ms)}", wasm=wasm)
            assert status == 201, said
            assert (await ask(process, "PUT", "/policy", {"policy": "mine"}))[0] == 200
            async with connected(process) as client:
                await client.send(POST)
                await waiting(process)
                if not left:
                    process.process.send_signal(signal.SIGTERM)
                    assert (await client.response()).body == b"0"
            assert await (stopped(process) if left else within(process.ended())) == 0


async def test_38_a_guest_that_spins_in_shadow() -> None:
    async with ScriptedEngine(answering(respond(b"0"))) as engine:
        with router("--worker-urls", engine.url) as process:
            wasm = guest(select_worker=SPINS)
            await ask(process, "PUT", f"/plugins/mine{limit(30_000)}", wasm=wasm)
            assert (await ask(process, "PUT", "/shadow", {"plugin": "mine", "share": 1}))[0] == 200
            assert await placed(process, LARGE) == 0
            await waiting(process)
            assert await stopped(process) == 0


@pytest.mark.parametrize("left", [False, True], ids=["waited for", "nobody waits"])
async def test_38_a_guest_that_spins_in_init(request: pytest.FixtureRequest, left: bool) -> None:
    with router() as process:
        async with connected(process) as client:
            ms = 30_000 if left else 1_000
            await client.send(put(unique(request, init="(loop $l (br $l))"), limit(ms)))
            child = await compiling(process.process.pid)
            os.kill(child, signal.SIGCONT)
            await until(lambda: not command_of(child))
            if not left:
                process.process.send_signal(signal.SIGTERM)
                answer = await client.response()
                assert answer.status == 400
                assert b"timeout" in answer.body
        assert await (stopped(process) if left else within(process.ended())) == 0
