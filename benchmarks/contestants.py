"""The programs that are compared: where each is found, which version it is, how it is started.

All of them are started as an operator of streams would: their defaults, but that logging is off and
connections to engines are kept open everywhere, and that nginx and haproxy do not hold answers back
(by default nginx collects them, and haproxy waits up to 200 ms for more to send together).
"""

import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from engine import models_answer, unary_answer
from lab import Lab, Program, Unavailable, find_program, free_ports, start_router

POLICIES = ("round_robin", "least_connections", "cache_aware")
"""This router is measured with each of them: built in, a plugin, and one that reads the body."""


@dataclass(frozen=True)
class Contestant:
    """A proxy under test.

    Attributes:
        name: how it is called in the tables.
        version: its version.
        start: starts it in front of an engine's ports; raises Unavailable.
    """

    name: str
    version: str
    start: Callable[[Lab, Sequence[int]], Program]


# ---- this router


def own(policy: str) -> Contestant:
    def start(lab: Lab, engines: Sequence[int]) -> Program:
        return start_router(lab, policy, [f"http://127.0.0.1:{port}" for port in engines])

    return Contestant(f"sgl-router {policy}", version("sgl-router"), start)


# ---- nginx and haproxy

_NGINX = """
daemon off; worker_processes {processes}; pid {folder}/pid; error_log {folder}/error.log;
worker_rlimit_nofile 16384;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {folder}; proxy_temp_path {folder};
  fastcgi_temp_path {folder}; uwsgi_temp_path {folder}; scgi_temp_path {folder};
  keepalive_requests 100000000; keepalive_timeout 1h; default_type application/json;
  {content}
}}
"""
_NGINX_ENGINE = """server {{ {listen}
  location = /v1/models {{ return 200 '{models}'; }}
  location / {{ return 200 '{answer}'; }}
}}"""
_NGINX_PROXY = """upstream engines {{
  {servers} keepalive 64; keepalive_requests 100000000; keepalive_timeout 1h;
}}
server {{ listen 127.0.0.1:{port} backlog=4096; location / {{
  proxy_pass http://engines; proxy_http_version 1.1; proxy_set_header Connection "";
  proxy_buffering off;
}} }}"""
_HAPROXY = """
global
  log stderr local0 emerg
  maxconn 8000
  {threads}
defaults
  mode http
  option http-no-delay
  timeout connect 5s
  timeout client 1h
  timeout server 1h
frontend clients
  bind 127.0.0.1:{port}
  default_backend engines
backend engines
  balance roundrobin
{servers}
"""


def nginx_engine(lab: Lab, program: str, ports: Sequence[int]) -> Program:
    """nginx as the engine: it answers a chat request with 600 bytes of JSON, at each port."""
    content = _NGINX_ENGINE.format(
        listen=" ".join(f"listen 127.0.0.1:{port} backlog=4096;" for port in ports),
        models=models_answer().decode(),
        answer=unary_answer(0).decode(),
    )
    return _nginx(lab, program, content, ports[0], "1")


def nginx(program: str, processes: str) -> Contestant:
    """Args: processes: how many workers, or "auto"."""

    def start(lab: Lab, engines: Sequence[int]) -> Program:
        (port,) = free_ports(1)
        servers = " ".join(f"server 127.0.0.1:{engine};" for engine in engines)
        return _nginx(
            lab, program, _NGINX_PROXY.format(port=port, servers=servers), port, processes
        )

    return Contestant("nginx", _told([program, "-v"]).rpartition("/")[2], start)


def _nginx(lab: Lab, program: str, content: str, port: int, processes: str) -> Program:
    folder = lab.subfolder("nginx")
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, content=content, processes=processes))
    return _serving(lab, [program, "-p", str(folder), "-c", str(config)], port)


def haproxy(program: str, threads: int | None) -> Contestant:
    """Args: threads: how many; None: its default, as many as there are CPUs."""

    def start(lab: Lab, engines: Sequence[int]) -> Program:
        (port,) = free_ports(1)
        servers = "\n".join(f"  server e{engine} 127.0.0.1:{engine}" for engine in engines)
        config = lab.subfolder("haproxy") / "haproxy.cfg"
        nbthread = f"nbthread {threads}" if threads else ""
        config.write_text(_HAPROXY.format(threads=nbthread, port=port, servers=servers))
        return _serving(lab, [program, "-db", "-f", str(config)], port)

    told = _told([program, "-v"]).split()
    return Contestant("haproxy", told[2] if len(told) > 2 else "unknown", start)


# ---- routers from PyPI


@dataclass(frozen=True)
class Peer:
    """A router that is installed with pip.

    Attributes:
        name: of the distribution, of its command and of the option that tells where it is.
        module: what `python -m` starts.
    """

    name: str
    module: str

    @property
    def variable(self) -> str:
        """The environment variable with its command."""
        return "BENCHMARK_" + self.name.upper().replace("-", "_")


PEERS = (
    Peer("sglang-router", "sglang_router.launch_router"),
    Peer("smg", "smg.launch_router"),
    Peer("vllm-router", "vllm_router.launch_router"),
)


def find_peer(peer: Peer, command: str | None, folders: Sequence[str]) -> Contestant:
    """The peer, by the command given, in one of the virtual environments, or on PATH.

    Raises Unavailable where it is in none of them.
    """
    if command:
        words = shlex.split(command)
        if not words or shutil.which(words[0]) is None:
            raise Unavailable(f"there is no program {command!r} (option --{peer.name})")
        return _peer(peer, words, _version_by(_interpreter(words[0]), peer) or "unknown version")
    pythons = [str(Path(folder) / "bin" / "python") for folder in folders]
    if on_path := shutil.which(peer.name):
        pythons.append(_interpreter(on_path))
    for python in pythons:
        if found := _version_by(python, peer):
            return _peer(peer, [*shlex.split(python), "-m", peer.module], found)
    raise Unavailable("not installed")


def _peer(peer: Peer, command: Sequence[str], found: str) -> Contestant:
    def start(lab: Lab, engines: Sequence[int]) -> Program:
        port, metrics = free_ports(2)
        return _serving(
            lab,
            [*command, "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin",
             "--log-level", "error", "--prometheus-host", "127.0.0.1", "--prometheus-port",
             str(metrics), "--worker-urls", *(f"http://127.0.0.1:{engine}" for engine in engines)],
            port,
        )  # fmt: skip

    return Contestant(peer.name, found, start)


def _interpreter(program: str) -> str:
    """The Python that a command stands for, or is written for."""
    path = shutil.which(program) or program
    if Path(path).name.startswith("python"):
        return path
    with Path(path).open("rb") as script:
        first = script.readline(4096)
    return first[2:].decode("utf-8", "replace").strip() if first.startswith(b"#!") else path


def _version_by(python: str, peer: Peer) -> str | None:
    """The version of the distribution in that Python's environment, None where it is not in it.

    A command's name is not enough: sglang-router installs an `smg` too, which is not smg.
    """
    if "python" not in python:
        return None  # a shell's script, as pyenv's are: it is not asked in Python
    ask = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
    try:
        answer = subprocess.run(
            [*shlex.split(python), "-c", ask, peer.name],
            capture_output=True, text=True, check=False, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


# ---- all of them


def find_all(
    commands: dict[str, str | None], folders: Sequence[str], *, one_cpu: bool
) -> tuple[list[Contestant], dict[str, str]]:
    """What can be compared, and by name why something cannot.

    Args:
        commands: of peers, by their names; None: look for it.
        folders: virtual environments in which to look.
        one_cpu: nginx and haproxy are to use one CPU; by default they use all, as is usual.
    """
    found = [own(policy) for policy in POLICIES]
    missing: dict[str, str] = {}
    if path := find_program("nginx"):
        found.append(nginx(path, "1" if one_cpu else "auto"))
    else:
        missing["nginx"] = "not installed"
    if path := find_program("haproxy"):
        found.append(haproxy(path, 1 if one_cpu else None))
    else:
        missing["haproxy"] = "not installed"
    for peer in PEERS:
        try:
            command = commands.get(peer.name) or os.environ.get(peer.variable)
            found.append(find_peer(peer, command, folders))
        except Unavailable as error:
            missing[peer.name] = str(error)
    return found, missing


def _serving(lab: Lab, command: Sequence[str], port: int) -> Program:
    program = lab.start(command, port)
    program.wait_until_serving()
    return program


def _told(command: Sequence[str]) -> str:
    """The first line that a program prints of itself."""
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    return ((answer.stdout or answer.stderr).splitlines() or ["unknown"])[0]
