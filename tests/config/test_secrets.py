"""A key is in no representation, no error and no document, wherever it is given."""

import runpy
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sgl_router.config import RouterConfig, WorkerSettings
from sgl_router.config.options import OPTIONS, SECRET_NAMES
from sgl_router.errors import ConfigError
from tests.config.support import complaint, load

KEY = "sk-S3cr3t"
ROOT = Path(__file__).parents[2]


def everything_said(error: BaseException) -> str:
    """The error's text, and all that a traceback of it shows."""
    return "".join(traceback.format_exception(error)) + repr(error)


def test_keys_are_taken_from_everywhere(tmp_path: Path) -> None:
    file = tmp_path / "router.yaml"
    file.write_text(f"api_key: {KEY}\nworkers: [{{url: http://a, api_key: {KEY}}}]\n")
    config = load("--config", str(file), environment={"SGL_ROUTER_ADMIN_API_KEY": KEY})
    keys = [config.api_key, config.admin_api_key, config.workers[0].api_key]
    assert [key.get_secret_value() for key in keys if key is not None] == [KEY] * 3
    flag = load("--api-key", KEY).api_key
    assert flag is not None
    assert flag.get_secret_value() == KEY


def test_keys_are_not_shown() -> None:
    config = RouterConfig.model_validate(
        {
            "api_key": KEY,
            "admin_api_key": KEY,
            "workers": [{"url": "http://a", "api_key": KEY}],
        }
    )
    assert {option.name for option in OPTIONS.values() if option.secret} == SECRET_NAMES
    for shown in (repr(config), str(config), repr(config.model_dump()), config.model_dump_json()):
        assert KEY not in shown


def test_a_flag_for_a_key_warns_of_the_process_list() -> None:
    for option in OPTIONS.values():
        if option.secret:
            assert "process list" in option.description
            assert option.variable in option.description


def test_a_default_key_would_not_be_shown() -> None:
    assert replace(OPTIONS["api_key"], default=KEY).default_text == ""


FILES = [
    "api_key: [{key}]\n",
    "api_key: {{{key}: 1}}\n",
    "api_key: '{key}\n",
    "api_key: !{key}\n",
    "api_key: *{key}\n",
    "api_key: {key}: x\n",
    "api_key: '{key} with spaces'\n",
    "api_key: |\n  {key}\n",
    "api_keys: {key}\n",
    "admin_api_key: {key}\nport: high\n",
    "admin_api_key: {key}\nprefill: [http://a]\n",
    "workers: {{api_key: {key}}}\n",
    "workers: [{{api_key: {key}}}]\n",
    "workers: [{{url: http://a, api_key: [{key}]}}]\n",
    "workers: [{{url: http://a, apikey: {key}}}]\n",
    "workers: [{{url: http://a, api_key: {key}, cost: -1}}]\n",
    "workers: [{{url: http://a, api_key: {key}}}, 7]\n",
    "worker_urls: ['ftp://user:{key}@a']\n",
    "prefill: ['ftp://user:{key}@a 9000']\n",
    "oracle_password: {key}\n",
]


@pytest.mark.parametrize("template", FILES)
@given(key=st.from_regex(r"[A-Za-z][A-Za-z0-9]{7,20}", fullmatch=True))
def test_an_error_in_a_file_holds_no_key(
    template: str, key: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / "secret.yaml"
    file.write_text(template.format(key=f"{key}S3CR3T"))
    with pytest.raises(ConfigError) as refused:
        load("--config", str(file))
    assert f"{key}S3CR3T" not in everything_said(refused.value)
    assert "secret.yaml" in str(refused.value) or "--pd-disaggregation" in str(refused.value)


@pytest.mark.parametrize(
    "environment",
    [
        {"SGL_ROUTER_API_KEY": f"{KEY} {KEY}"},
        {"SGL_ROUTER_API_KEY": f"{KEY}\n"},
        {"SGL_ROUTER_API_KEY": f"{KEY}é"},
        {"SGL_ROUTER_WORKERS": f'[{{"url": "http://a", "api_key": "{KEY}"'},
        {"SGL_ROUTER_WORKERS": f'{{"api_key": "{KEY}"}}'},
        {"SGL_ROUTER_WORKERS": f'[{{"api_key": "{KEY}"}}]'},
        {"SGL_ROUTER_REDIS_URL": f"redis://:{KEY}@a"},
    ],
)
def test_an_error_in_a_variable_holds_no_key(environment: dict[str, str]) -> None:
    with pytest.raises(ConfigError) as refused:
        load(environment=environment)
    assert KEY not in everything_said(refused.value)
    assert next(iter(environment)) in str(refused.value)


def test_an_empty_key_is_refused() -> None:
    """Who sets a variable to nothing by mistake must not open the router to everybody."""
    for name in sorted(SECRET_NAMES):
        with pytest.raises(ConfigError, match=name):
            load(environment={OPTIONS[name].variable: ""})


@pytest.mark.parametrize(
    "arguments",
    [
        ("--admin-key", KEY),
        (f"--admin-key={KEY}",),
        ("--api-key", "my", KEY),
        ("--oracle-password", KEY),
        (f"--oracle-password={KEY}",),
        ("--control-plane-api-keys", f"a:b:admin:{KEY}", KEY),
    ],
)
def test_an_error_in_the_command_line_holds_no_key(arguments: tuple[str, ...]) -> None:
    said = complaint(*arguments)
    assert said
    assert KEY not in said


def test_an_error_of_the_models_themselves_holds_no_key() -> None:
    worker = {"url": "http://a", "api_key": KEY}
    for values in (
        {"api_key": KEY, "admin_api_key": [KEY]},
        {"api_key": KEY, "tls_cert_path": "c"},
        {"workers": [{**worker, "cost": -1}]},
        {"api_key": f"{KEY} "},
    ):
        with pytest.raises(ValidationError) as refused:
            RouterConfig.model_validate(values)
        assert KEY not in everything_said(refused.value)
    with pytest.raises(ValidationError) as refused:
        WorkerSettings.model_validate({**worker, "apikey": KEY})
    assert KEY not in everything_said(refused.value)


def test_the_documents_hold_no_key() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "write_options.py"))
    row = next(line for line in script["page"]().splitlines() if "`--api-key KEY`" in line)
    assert row.split("|")[2].strip() == ""
