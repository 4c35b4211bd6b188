"""The process that compiles: what it may, how it ends, and what it may answer."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import wasmtime

from sgl_router.wasm.compile import CompileLimits, Compiler
from sgl_router.wasm.compile_child import ARTIFACT, MAGIC, NO_MEMORY, REFUSED
from sgl_router.wasm.engine import make_engine
from tests.wasm.compiling import (
    ANSWER,
    MAX_MODULE_BYTES,
    MAY_GROW_BYTES,
    MIB,
    PLUGIN,
    answer_of,
    compiled,
    compiling,
    framed,
    gone,
    refusal,
    replace_child,
    resident_bytes,
    saying,
    slow,
    until,
)


@pytest.fixture(scope="module")
def engine() -> wasmtime.Engine:
    return make_engine()


@pytest.fixture
def child_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    return lambda program: replace_child(tmp_path, monkeypatch, program)


# ---- the child as a process


def test_a_child_has_nothing_that_compiling_does_not_need(
    engine: wasmtime.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGL_ROUTER_API_KEY", "a secret of the router")
    limits = CompileLimits(memory_bytes=300 * MIB, cpu_secs=20)
    compiler = Compiler(engine, None, limits)
    with ThreadPoolExecutor(1) as threads:
        compiling_slowly = threads.submit(refusal, compiler, slow())
        until(compiling)
        (child,) = compiling()
        of_child = Path(f"/proc/{child}")

        def limit(name: str) -> list[str]:
            (line,) = (
                line
                for line in (of_child / "limits").read_text().splitlines()
                if line.startswith(name)
            )
            return line[len(name) :].split()[:2]

        until(lambda: limit("Max open files") == ["0", "0"])
        assert limit("Max address space") == [str(300 * MIB)] * 2
        assert limit("Max cpu time") == ["20", "21"]
        assert limit("Max core file size") == ["0", "0"]
        assert limit("Max file size") == ["0", "0"]
        assert b"a secret of the router" not in (of_child / "environ").read_bytes()
        assert "NoNewPrivs:\t1" in (of_child / "status").read_text()
        assert os.getpriority(os.PRIO_PROCESS, child) > os.getpriority(os.PRIO_PROCESS, 0)
        assert (of_child / "oom_score_adj").read_text() == "1000\n"
        assert {path.name for path in (of_child / "fd").iterdir()} <= set("0123")
        compiler.close()
        compiling_slowly.result()


def test_a_child_that_is_killed_is_a_failure(engine: wasmtime.Engine) -> None:
    compiler = Compiler(engine, None)
    with ThreadPoolExecutor(1) as threads:
        killed = threads.submit(refusal, compiler, slow())
        until(compiling)
        os.kill(compiling()[0], signal.SIGKILL)
        assert "was killed (SIGKILL)" in killed.result()
    assert answer_of(engine, compiled(compiler)) == 42


_PARENT = """
import sys
from sgl_router.wasm.compile import Compiler
from sgl_router.wasm.engine import make_engine
Compiler(make_engine(), None).compile(sys.stdin.buffer.read(), "a digest")
"""


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    (tmp_path / "slow.wasm").write_bytes(slow())
    with (tmp_path / "slow.wasm").open("rb") as wasm:
        parent = subprocess.Popen([sys.executable, "-c", _PARENT], stdin=wasm)
    until(lambda: compiling(parent.pid))
    (child,) = compiling(parent.pid)
    parent.kill()
    parent.wait()
    until(lambda: gone(child), secs=8)  # of its own accord it ends after 30 s of CPU time


def test_a_child_whose_parent_has_ended_before_does_nothing() -> None:
    somebody_else = "1"
    child = subprocess.run(
        [
            *(sys.executable, "-m", "sgl_router.wasm.compile_child"),
            *(str(512 * MIB), "5", somebody_else, "module"),
        ],
        input=ANSWER,
        capture_output=True,
        check=False,
    )
    assert child.returncode == 1
    assert child.stdout == b""
    assert b"parent" in child.stderr


def test_close_ends_what_is_compiled_and_what_waits(engine: wasmtime.Engine) -> None:
    compiler = Compiler(engine, None, CompileLimits(at_once=1))
    wasm = slow()
    with ThreadPoolExecutor(3) as threads:
        all_of_them = [threads.submit(refusal, compiler, wasm) for _ in range(3)]
        until(compiling)
        compiler.close()
        for each in all_of_them:
            assert "stopping" in each.result()
    assert compiling() == []
    assert "stopping" in refusal(compiler)
    compiler.close()


def test_nothing_is_left_behind(engine: wasmtime.Engine) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    compiler = Compiler(engine, None, CompileLimits(max_artifact_bytes=100_000))
    compiled(compiler)
    before, threads_before = descriptors(), set(threading.enumerate())
    compiled(compiler)
    refusal(compiler, b"no module")
    refusal(compiler, PLUGIN.read_bytes())
    assert descriptors() == before
    assert set(threading.enumerate()) <= threads_before, "one of another test may have ended"


def test_without_a_child_it_is_a_failure_too(
    engine: wasmtime.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = Compiler(engine, None)
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert "could not be started" in refusal(compiler)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert "ended with status 1" in refusal(compiler)


# ---- children that answer what they like


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (saying(b""), "status 0"),
        (saying(b"sg"), "status 0"),
        (saying(framed(ARTIFACT, b"", length=1)), "status 0"),
        (saying(framed(ARTIFACT, b"native", length=7)), "status 0"),
        (saying(framed(ARTIFACT, b"native", length=5)), "status 0"),
        (saying(framed(ARTIFACT, b"native", length=2**64 - 1)), "status 0"),
        (saying(b"x" + framed(ARTIFACT, b"native")), "status 0"),
        (saying(framed(77, b"native")), "status 0"),
        (saying(framed(ARTIFACT, b"native"), 3), "status 3"),
        (saying(framed(ARTIFACT, b"native")), "does not load"),
        (saying(framed(ARTIFACT, b"\x7fELF" + bytes(2000))), "does not load"),
        (saying(framed(REFUSED, b"\x1b[31m \xff\xfe bad")), "the module is not valid: \\x1b[31m"),
        (saying(framed(REFUSED, b"x" * 100_000)), "(100,000 characters)"),
        (saying(framed(NO_MEMORY, b"")), "bytes of memory"),
        ("os.abort()", "SIGABRT"),
        ("os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "signal 40"),
        ("raise RuntimeError('what it \\x1b says')", "what it \\x1b says"),
        ("print('x' * 100_000, file=sys.stderr); sys.exit('the end of it')", "the end of it"),
        ("while True: os.write(1, bytes(65536))", "more than 1,048,576 bytes"),
        ("while True: os.write(2, bytes(65536))", "longer than 1 s"),
        ("os.close(1); os.close(2); time.sleep(60)", "longer than 1 s"),
        ("os.write(1, b'sglc'); time.sleep(60)", "longer than 1 s"),
    ],
)
def test_whatever_a_child_answers_is_judged(
    engine: wasmtime.Engine, child_does: Callable[[str], None], program: str, words: str
) -> None:
    child_does(program)
    before = resident_bytes("VmRSS")
    limits = CompileLimits(max_artifact_bytes=MIB, wall_secs=1 if "longer" in words else 30)
    assert words in refusal(Compiler(engine, None, limits))
    assert resident_bytes("VmRSS") - before < MAY_GROW_BYTES
    assert compiling() == []


def test_what_a_child_has_started_ends_with_it(
    engine: wasmtime.Engine, child_does: Callable[[str], None], tmp_path: Path
) -> None:
    note = tmp_path / "grandchild"
    child_does(
        f"child = os.fork()\nif child: open({str(note)!r}, 'w').write(str(child))\ntime.sleep(60)"
    )
    assert "longer than 3 s" in refusal(Compiler(engine, None, CompileLimits(wall_secs=3)))
    grandchild = int(note.read_text())
    until(lambda: gone(grandchild))


def test_only_so_many_run_at_once(
    engine: wasmtime.Engine, child_does: Callable[[str], None], tmp_path: Path
) -> None:
    alone, together = (framed(REFUSED, word) for word in (b"alone", b"together"))
    child_does(
        f"""
try:
    os.mkdir({str(tmp_path / "running")!r})
except FileExistsError:
    os.write(1, {together!r})
    os._exit(0)
time.sleep(0.05)
os.rmdir({str(tmp_path / "running")!r})
os.write(1, {alone!r})
"""
    )
    compiler = Compiler(engine, None, CompileLimits(at_once=1))
    with ThreadPoolExecutor(4) as threads:
        reasons = list(threads.map(lambda _: refusal(compiler), range(4)))
    assert reasons == ["the module is not valid: alone"] * 4


def test_what_a_library_prints_is_no_answer(
    engine: wasmtime.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "wasmtime.py").write_text(
        f"import os, sys\nos.write(1, b'a greeting')\nsys.path.remove({str(tmp_path)!r})\n"
        "del sys.modules['wasmtime']\nimport wasmtime\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    compiler = Compiler(engine, None)
    assert answer_of(engine, compiled(compiler)) == 42


def test_a_child_gets_the_module_byte_for_byte(
    engine: wasmtime.Engine, child_does: Callable[[str], None]
) -> None:
    child_does(
        "import hashlib\n"
        "digest = hashlib.sha256(sys.stdin.buffer.read()).hexdigest().encode()\n"
        f"os.write(1, HEADER.pack({MAGIC!r}, {REFUSED}, len(digest)) + digest)"
    )
    wasm = os.urandom(MAX_MODULE_BYTES)
    assert hashlib.sha256(wasm).hexdigest() in refusal(Compiler(engine, None), wasm)
