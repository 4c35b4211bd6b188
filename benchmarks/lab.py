"""Programs on 127.0.0.1, started and ended, and what the kernel says that each of them costs."""

import http.client
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType, TracebackType

from workload import PATH, chat_bodies

HERE = Path(__file__).parent

START_SECS = 60.0
"""How long a program may take until it passes a request on."""

QUIET_SHARE = 0.05
"""How much of the CPUs others may take before the figures are worth little."""

STOP_SECS = 5.0
"""How long a program may take to end when it is asked to."""


class Unavailable(Exception):
    """A program is not there, or does not serve; the text says why."""


class Program:
    """A running program and its children, until `stop`.

    Attributes:
        port: where it serves.
    """

    def __init__(self, command: Sequence[str], port: int, log: Path) -> None:
        """Raises Unavailable where there is no such program."""
        self.port = port
        self._log = log
        with log.open("wb") as output:
            try:
                # A session of its own, so that its children can be ended with it.
                self._child = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise Unavailable(f"cannot be started: {error}") from error

    def wait_until_serving(self) -> None:
        """Returns when a chat request is answered 200; raises Unavailable where it never is."""
        (body,) = chat_bodies(1, 1000)
        deadline = time.monotonic() + START_SECS
        while (answer := self._ask(body)) != "200":
            if self._child.poll() is not None:
                raise Unavailable(
                    f"ended with status {self._child.returncode}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise Unavailable(f"{answer} for {START_SECS:g} s: {self._last_words()}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it and its children; does nothing where it has ended."""
        if self._child.poll() is not None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(STOP_SECS)

    def pids(self) -> list[int]:
        """The process and all below it."""
        found, pending = [], [self._child.pid]
        while pending:
            pid = pending.pop()
            found.append(pid)
            with suppress(OSError):  # it may end at any time
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pending += map(int, (task / "children").read_text().split())
        return found

    def cpu_us(self) -> float:
        """CPU time of the processes so far, user and system, in µs.

        It is read from each process's own CPU clock (clock_getcpuclockid(3)): /proc/PID/stat counts
        in ticks of 10 ms, and /proc/PID/task/*/schedstat forgets what a thread took when it ends.
        """
        total = 0
        for pid in self.pids():
            with suppress(OSError):
                total += time.clock_gettime_ns((~pid << 3) | 2)
        return total / 1000

    def resident_bytes(self) -> int:
        """Resident memory; what its processes share is counted for each of them."""
        pages = 0
        for pid in self.pids():
            with suppress(OSError):
                pages += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize()

    def _ask(self, body: bytes) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            return str(connection.getresponse().status)
        except (OSError, http.client.HTTPException) as error:
            return type(error).__name__
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = self._log.read_text("utf-8", "replace").strip().splitlines()
        return lines[-1].strip()[:200] if lines else "it said nothing"


class Lab:
    """The programs of a benchmark; all of them are ended when it is left.

    Attributes:
        folder: for configuration files and the like.
    """

    def __init__(self) -> None:
        self._programs: list[Program] = []
        self._scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.folder = Path(self._scratch.name)
        self.folder.chmod(0o755)  # nginx started by root works as somebody else

    def __enter__(self) -> "Lab":
        signal.signal(signal.SIGTERM, _leave)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for program in reversed(self._programs):
            program.stop()
        self._scratch.cleanup()

    def start(self, command: Sequence[str], port: int) -> Program:
        """Start a program that serves at `port`; see `Program.wait_until_serving`."""
        program = Program(command, port, self.folder / f"{len(self._programs)}.log")
        self._programs.append(program)
        return program

    def subfolder(self, name: str) -> Path:
        """A folder of that name which did not exist before."""
        folder = Path(tempfile.mkdtemp(prefix=name, dir=self.folder))
        folder.chmod(0o755)
        return folder


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)  # so that what was started is ended


def free_ports(count: int) -> list[int]:
    """Different ports at which nothing listens at this moment."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def find_program(name: str) -> str | None:
    """Its path; the folders of system programs are looked in too, which not every PATH names."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"))
    return shutil.which(name, path=path)


def raise_descriptor_limit() -> int:
    """Allow this process, and what it starts, all the descriptors it may have; returns how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def use_one_cpu() -> None:
    """Keep this process, and what it starts, on one CPU."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def machine() -> dict[str, str]:
    """What the figures were measured on, and by what."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "CPU": f"{names[0] if names else platform.machine()}, {os.cpu_count()} CPUs"
        + (" of a virtual machine" if _is_virtual() else ""),
        "CPUs used": str(len(os.sched_getaffinity(0))),
        "kernel": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
        **{name: version(name) for name in ("uvloop", "wasmtime", "orjson")},
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def _is_virtual() -> bool:
    return " hypervisor" in Path("/proc/cpuinfo").read_text()


class Disturbance:
    """What else used the machine's CPUs since this was made; to be asked when the lab is closed."""

    def __init__(self) -> None:
        self._before = self._read()

    def shares(self) -> tuple[float, float]:
        """Of all CPU time, from 0 to 1: what other guests of the host took, and what other programs
        of this machine took. Where one is not near 0, the measurement is worth little."""
        stolen, busy, ours, total = (
            now - then for now, then in zip(self._read(), self._before, strict=True)
        )
        return (stolen / total, max(0.0, busy - ours) / total) if total else (0.0, 0.0)

    def sentence(self) -> str:
        """The same, for people."""
        stolen, others = self.shares()
        told = (
            f"Other guests of the host took {stolen:.1%} of the CPUs, other programs {others:.1%}."
        )
        if stolen + others > QUIET_SHARE:
            told += " That is too much: measure again on a machine that does nothing else."
        return told

    @staticmethod
    def _read() -> tuple[float, float, float, float]:
        """Seconds: stolen, busy, busy with this process and its ended children, and all."""
        first = Path("/proc/stat").read_text().partition("\n")[0]
        user, nice, system, idle, wait, irq, softirq, stolen = map(int, first.split()[1:9])
        tick = 1 / os.sysconf("SC_CLK_TCK")
        busy = user + nice + system + irq + softirq
        usages = [
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        ]
        ours = sum(usage.ru_utime + usage.ru_stime for usage in usages)
        return stolen * tick, busy * tick, ours, (busy + stolen + idle + wait) * tick


def start_engine(lab: Lab, ports: Sequence[int], chunks: int, interval_ms: int) -> Program:
    """Our own engine (`engine.py`) at these ports, serving."""
    script = str(HERE / "engine.py")
    pace = ["--chunks", str(chunks), "--interval-ms", str(interval_ms)]
    engine = lab.start([sys.executable, script, *pace, "--ports", *map(str, ports)], ports[0])
    engine.wait_until_serving()
    return engine


def start_router(lab: Lab, policy: str, workers: Sequence[str]) -> Program:
    """This router with these worker URLs, serving; raises Unavailable where it refuses."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "sgl_router", "launch"]
    address = ["--host", "127.0.0.1", "--port", str(port)]
    options = ["--policy", policy, "--disable-health-check", "--log-level", "error"]
    router = lab.start([*command, *address, *options, "--worker-urls", *workers], port)
    router.wait_until_serving()
    return router
