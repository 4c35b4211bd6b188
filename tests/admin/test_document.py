"""`/openapi.json` is true: what it allows is answered as it says, what it does not is refused."""

import re
from dataclasses import fields
from inspect import iscoroutinefunction
from typing import Any

import orjson
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from sgl_router.admin.aborts import Aborts
from sgl_router.admin.control import AdminSettings
from sgl_router.admin.engines import Engines
from sgl_router.admin.models import Models
from sgl_router.admin.plugin_schemas import SETTINGS_SCHEMA
from sgl_router.admin.plugins import Plugins
from sgl_router.admin.policies import Policies, Shadows
from sgl_router.admin.probes import Probes
from sgl_router.admin.workers import OlderClients, Workers
from sgl_router.core.worker import Worker
from sgl_router.wasm.config import WasmPolicyConfig
from tests.admin.plugin_control import FakePlugins, plugin
from tests.admin.support import ADMIN_KEY, API_KEY, Router, up

ONE, TWO = "http://one:8000", "http://two:8000"
KEY = {"Authorization": f"Bearer {ADMIN_KEY}"}

BOUNDED = settings(
    max_examples=25,
    stateful_step_count=8,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)

# A schema cannot say which URIs are URLs of workers; core/worker.py does.
_hosts = st.from_regex(r"[a-z][a-z0-9]{0,8}(\.[a-z]{2,4})?|127\.0\.0\.1|\[::1\]", fullmatch=True)
_ports = st.just("") | st.integers(1, 65535).map(":{}".format)
_paths = st.from_regex(r"(/([a-z0-9._~-]|%20){1,8}){0,2}/?", fullmatch=True)
schemathesis.openapi.format(
    "uri", st.builds("http{}://{}{}{}".format, st.sampled_from(["", "s"]), _hosts, _ports, _paths)
)


def with_keys(admin_key: str | None, api_key: str | None) -> Router:
    """Two workers, of which only the first one's engine answers."""
    keys = AdminSettings(
        admin_key=None if admin_key is None else admin_key.encode(),
        api_key=None if api_key is None else api_key.encode(),
    )
    router = Router(ONE, TWO, settings=keys)
    router.engines.answer(ONE, "/v1/models", b'{"data": [{"id": "a"}]}')
    router.engines.answer(ONE, "/get_model_info", b"{}")
    router.engines.answer(ONE, "/flush_cache", b"")
    router.engines.answer(ONE, "/abort_request", b"")
    return router


def the_first(router: Router) -> Worker:
    """The worker whose engine answers, added again where it was removed."""
    worker = router.registry.get(ONE)
    if worker is None:
        worker = up(ONE)
        router.registry.add(worker)
    return worker


schemathesis.serializer.alias("application/wasm", "application/octet-stream")

ROUTER = with_keys(ADMIN_KEY, ADMIN_KEY)
schema = schemathesis.openapi.from_asgi("/openapi.json", ROUTER.app, headers=KEY)


@schema.hook("filter_case")
def has_settings_once(_context: object, case: schemathesis.Case[Any]) -> bool:
    """A schema cannot say that what is in the query must not be in the form as well."""
    in_form = isinstance(case.body, dict) and "settings" in case.body
    return not (in_form and "settings" in (case.query or {}))


@schema.parametrize()
@BOUNDED
def test_every_answer_is_documented(case: schemathesis.Case[Any]) -> None:
    case.call_and_validate(headers=KEY)


@schema.include(path_regex="worker_id").parametrize()
@BOUNDED
def test_every_answer_about_a_worker_that_is_there(case: schemathesis.Case[Any]) -> None:
    case.path_parameters["worker_id"] = the_first(ROUTER).id
    case.call_and_validate(headers=KEY)


@schema.include(path_regex="name").parametrize()
@BOUNDED
def test_every_answer_about_a_plugin_that_is_there(case: schemathesis.Case[Any]) -> None:
    ROUTER.plugins.loaded.setdefault("mine", plugin("mine"))
    case.path_parameters["name"] = "mine"
    case.call_and_validate(headers=KEY)


class Machine(schema.as_state_machine()):  # type: ignore[misc]  # the base is made at run time
    """Uses what one answer tells in the next request."""

    def setup(self) -> None:
        for worker in list(ROUTER.registry):
            ROUTER.registry.remove(worker)
        the_first(ROUTER)
        vars(ROUTER.plugins).update(vars(FakePlugins()))  # what was loaded is told, and used

    def get_call_kwargs(self, case: schemathesis.Case[Any]) -> dict[str, Any]:
        the_first(ROUTER)  # without a worker, 503 is right
        return {"headers": KEY}


TestWhatFollowsFromWhat = Machine.TestCase
TestWhatFollowsFromWhat.settings = BOUNDED


KEYS = [(None, None), (ADMIN_KEY, None), (None, API_KEY), (ADMIN_KEY, API_KEY)]
PROBES = {"/liveness", "/health", "/readiness", "/metrics"}
DATA_PLANE = {
    "/abort_request",
    "/get_model_info",
    "/get_server_info",
    "/health_generate",
    "/v1/models",
}


@pytest.mark.parametrize(("admin_key", "api_key"), KEYS)
def test_keys_are_asked_for_where_they_are_needed(
    admin_key: str | None, api_key: str | None
) -> None:
    document = with_keys(admin_key, api_key).app.openapi()
    for path, operations in document["paths"].items():
        key = None if path in PROBES else api_key if path in DATA_PLANE else admin_key
        whose = "api" if path in DATA_PLANE else "admin"
        schemes = [] if key is None else [f"{whose}Bearer", f"{whose}Header"]
        for operation in operations.values():
            assert operation.get("security", []) == [{scheme: []} for scheme in schemes]
            if key is not None:
                assert "401" in operation["responses"]
    used = {name for o in _operations(document) for s in o.get("security", []) for name in s}
    assert document["components"].get("securitySchemes", {}).keys() == used


@pytest.mark.parametrize(("admin_key", "api_key"), KEYS)
def test_what_may_be_refused(admin_key: str | None, api_key: str | None) -> None:
    document = with_keys(admin_key, api_key).app.openapi()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            change = method != "get" and path not in DATA_PLANE - {"/abort_request"}
            assert ("403" in operation["responses"]) == change, path
            assert "422" not in operation["responses"], "it is answered 400"
    text = orjson.dumps(document).decode()
    assert "ValidationError" not in text
    names = set(re.findall(r'"#/components/schemas/(\w+)"', text))
    assert names == document["components"]["schemas"].keys(), "each is there, and used"


def test_each_operation_has_a_name_of_its_own() -> None:
    operations = _operations(ROUTER.app.openapi())
    assert len({o["operationId"] for o in operations}) == len(operations) > 15


def test_the_document_is_openapi() -> None:
    schema.validate()


TOPICS = [Workers, OlderClients, Engines, Models, Aborts, Probes, Plugins, Policies, Shadows]


@pytest.mark.parametrize("topic", TOPICS)
def test_handlers_stay_on_the_loop(topic: type) -> None:
    """FastAPI runs what is no coroutine in a thread, where the pool must not be touched."""
    handlers = [getattr(topic, name) for name in vars(topic) if not name.startswith("_")]
    handlers.remove(getattr(topic, "add_routes"))  # noqa: B009 (mypy knows no attribute of type)
    assert handlers
    assert all(iscoroutinefunction(handler) for handler in handlers)


def test_each_setting_of_a_plugin_is_told() -> None:
    settings = {each.name for each in fields(WasmPolicyConfig)} - {"name", "module_path"}
    assert SETTINGS_SCHEMA["properties"].keys() == settings


def _operations(document: dict[str, Any]) -> list[dict[str, Any]]:
    return [o for operations in document["paths"].values() for o in operations.values()]
