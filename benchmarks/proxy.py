"""CPU time of the proxy for one request, beside nginx's.

Hard about it: the price of a request in a proxy is tens of microseconds, of which the kernel has
its share; wall-clock figures of a shared machine say little, so the processes' own CPU time is
counted (user and system, from /proc/PID/task/*/schedstat: the ticks of /proc/PID/stat are too
coarse), over the same load, against a C program that does the same
work, in alternating rounds. The engine is nginx as well, so that it is never what is measured.
All of it runs on one CPU: to wake a process on an idle one costs the waker more than the request
does, on a virtual machine above all, and only programs that keep the others waiting pay for it.

    python benchmarks/proxy.py [--rounds 3] [--seconds 3]

Needs nginx and wrk (Debian: apt install nginx-light wrk).
"""

import argparse
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

CONNECTIONS = 16
ANSWER_BYTES = 600
BODY = '{"model":"m","messages":[{"role":"user","content":"%s"}]}' % ("word " * 210)

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  keepalive_requests 100000000;
  {content}
}}
"""
ENGINE = """server {{ listen 127.0.0.1:{port} backlog=1024; location / {{
  default_type application/json; return 200 '{answer}'; }} }}"""
PROXY = """upstream engines {{ server {engine}; keepalive 64; keepalive_requests 100000000; }}
server {{ listen 127.0.0.1:{port} backlog=1024; location / {{ proxy_pass http://engines;
  proxy_http_version 1.1; proxy_set_header Connection ""; }} }}"""
WRK = """wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
wrk.body = '{body}'
"""


@dataclass
class Contestant:
    """A proxy under test; CPU µs for a request and requests/s, one figure for each round."""

    name: str
    pids: list[int]
    port: int
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def process(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        try:
            yield child
        finally:
            child.terminate()


def wait_for(url: str) -> None:
    for _ in range(200):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit(f"{url} does not answer")


def nginx(stack: ExitStack, content: str, port: int) -> list[int]:
    """Start nginx; returns the process ids of master and worker."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, content=content))
    master = stack.enter_context(process("nginx", "-p", str(folder), "-c", str(config))).pid
    wait_for(f"http://127.0.0.1:{port}/")
    children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    return [master, *map(int, children)]


def router(stack: ExitStack, engine: str, policy: str) -> Contestant:
    port = free_port()
    arguments = ["--host", "127.0.0.1", "--port", str(port), "--policy", policy]
    pid = stack.enter_context(
        process(
            sys.executable, "-m", "sgl_router", "launch", *arguments,
            "--worker-urls", f"http://{engine}", "--disable-health-check", "--log-level", "error",
        )
    ).pid  # fmt: skip
    wait_for(f"http://127.0.0.1:{port}/health")
    return Contestant(f"sgl-router {policy}", [pid], port)


def cpu_secs(pids: list[int]) -> float:
    """CPU time of the processes' threads, by the scheduler's own account in nanoseconds."""
    threads = [path for pid in pids for path in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int((path / "schedstat").read_text().split()[0]) for path in threads) / 1e9


def one_round(contestant: Contestant, seconds: int, script: Path) -> None:
    before = cpu_secs(contestant.pids)
    output = subprocess.run(
        ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-s", str(script),
         f"http://127.0.0.1:{contestant.port}/v1/chat/completions"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    spent = cpu_secs(contestant.pids) - before
    found = re.search(r"(\d+) requests in", output)
    if found is None or "Non-2xx" in output or "Socket errors" in output:
        raise SystemExit(f"{contestant.name}: requests failed:\n{output}")
    contestant.cpu_us.append(spent / int(found[1]) * 1e6)
    contestant.rate.append(int(found[1]) / seconds)


def main(rounds: int, seconds: int) -> None:
    missing = [name for name in ("nginx", "wrk") if shutil.which(name) is None]
    if missing:
        raise SystemExit(f"needs {' and '.join(missing)} (Debian: apt install nginx-light wrk)")
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # and so everything started below
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "post.lua"
        script.write_text(WRK.format(body=BODY))
        engine_port, nginx_port = free_port(), free_port()
        engine = f"127.0.0.1:{engine_port}"
        nginx(stack, ENGINE.format(port=engine_port, answer="x" * ANSWER_BYTES), engine_port)
        proxy = PROXY.format(port=nginx_port, engine=engine)
        contestants = [
            Contestant("nginx", nginx(stack, proxy, nginx_port), nginx_port),
            router(stack, engine, "round_robin"),
            router(stack, engine, "least_connections"),
        ]
        for contestant in contestants:
            one_round(contestant, 1, script)
            contestant.cpu_us.clear()
            contestant.rate.clear()
        for _ in range(rounds):
            for contestant in contestants:
                one_round(contestant, seconds, script)
    print(
        f"{len(BODY):,}-byte chat requests, {ANSWER_BYTES}-byte answers, {CONNECTIONS} keep-alive "
        f"connections, {rounds} rounds of {seconds} s; medians\n"
        f"Python {platform.python_version()}, uvloop {version('uvloop')}, "
        f"httptools {version('httptools')}, everything on one CPU"
    )
    print(f"{'':<30}{'CPU µs/request':>16}{'× nginx':>9}{'requests/s':>12}")
    base = statistics.median(contestants[0].cpu_us)
    for c in contestants:
        cpu, rate = statistics.median(c.cpu_us), statistics.median(c.rate)
        print(f"{c.name:<30}{cpu:>16.1f}{cpu / base:>9.2f}{rate:>12,.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3)
    options = parser.parse_args()
    main(options.rounds, options.seconds)
