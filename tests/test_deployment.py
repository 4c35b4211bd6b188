"""What docs/deployment.md gives to copy can be used."""

import re
import shutil
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import yaml

from sgl_router.config import RouterConfig
from sgl_router.config.flags import launch_flags
from sgl_router.config.options import OPTIONS
from tests.admin.support import Router
from tests.config.support import load
from tests.conftest import leave_out

PAGE = (Path(__file__).parents[1] / "docs" / "deployment.md").read_text("utf-8")
GRACE_SECS = RouterConfig().shutdown_grace_period_secs


def block(language: str, holding: str = "") -> str:
    """The one block of that language which holds that text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [text for text in blocks if holding in text]
    assert isinstance(found, str)
    return found


def test_every_option_is_there() -> None:
    others = {"--ulimit", "--stop-timeout", "--env-file", "--no-cache-dir"}
    assert set(re.findall(r"--[a-z][a-z-]+", PAGE)) - others <= set(launch_flags())
    variables = {option.variable for option in OPTIONS.values()}
    assert set(re.findall(r"SGL_ROUTER_[A-Z_]+", PAGE)) <= variables


def test_the_unit(tmp_path: Path) -> None:
    text = block("ini")
    unit = ConfigParser(interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]  # keys have capitals
    unit.read_string(text)
    assert int(unit["Service"]["TimeoutStopSec"]) > GRACE_SECS
    if (analyze := shutil.which("systemd-analyze")) is None:
        leave_out("systemd is not here")
    file = tmp_path / "sgl-router.service"
    file.write_text(text.replace("/opt/sgl-router/bin/sgl-router", sys.executable))
    verified = subprocess.run(
        [analyze, "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")


def test_the_image_copies_what_is_there() -> None:
    root = Path(__file__).parents[1]
    for line in re.findall(r"^COPY (.*) \S+$", block("dockerfile"), re.MULTILINE):
        assert all((root / name).exists() for name in line.split())
    (timeout,) = re.findall(r"--stop-timeout (\d+)", PAGE)
    assert int(timeout) > GRACE_SECS


async def test_the_pod() -> None:
    deployment, service = yaml.safe_load_all(block("yaml", "Deployment"))
    pod: dict[str, Any] = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert pod["metadata"]["labels"] == service["spec"]["selector"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > GRACE_SECS
    config = load(*container["args"])
    assert (len(config.worker_urls), config.admin_port, config.admin_host) == (
        2,
        30001,
        "127.0.0.1",
    )
    (port,) = container["ports"]
    assert port["containerPort"] == config.port
    async with Router("http://engine").client() as client:
        for probe in ("livenessProbe", "readinessProbe"):
            asked = container[probe]["httpGet"]
            assert asked["port"] == port["name"]
            assert (await client.get(asked["path"])).status_code == 200


def test_the_scrape_configuration() -> None:
    (job,) = yaml.safe_load(block("yaml", "scrape_configs"))["scrape_configs"]
    assert all(re.fullmatch(r"[\d.]+:30000", t) for t in job["static_configs"][0]["targets"])
