"""Who may read and change what."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgl_router.admin.control import AdminSettings
from tests.admin.plugin_control import plugin
from tests.admin.support import ADMIN_KEY, API_KEY, LOCAL, REMOTE, Router, error_of

ONE, TWO = "http://one:8000", "http://two:8000"
PLUGIN = "mine"
WITH_ADMIN_KEY = AdminSettings(admin_key=ADMIN_KEY.encode())
WITH_API_KEY = AdminSettings(api_key=API_KEY.encode())
WITH_BOTH = AdminSettings(admin_key=ADMIN_KEY.encode(), api_key=API_KEY.encode())

OPEN = ["/liveness", "/health", "/readiness", "/metrics"]
DATA_PLANE = ["/v1/models", "/get_model_info", "/get_server_info", "/health_generate"]
ABORT = "/abort_request"  # of the data plane too; tests/admin/test_aborts.py asks for its key

ADMIN = {"authorization": f"Bearer {ADMIN_KEY}"}
DATA = {"authorization": f"Bearer {API_KEY}"}


def with_plugin(router: Router) -> Router:
    router.plugins.loaded[PLUGIN] = plugin(PLUGIN)
    return router


def operations(router: Router) -> Iterator[tuple[str, str]]:
    """Method and path of all that is served, with the id of the one worker, and of a plugin."""
    (worker,) = router.registry
    for path, methods in router.app.openapi()["paths"].items():
        for method in methods:
            one = path.replace("{worker_id}", worker.id).replace("{name}", PLUGIN)
            yield method.upper(), one
    yield "GET", "/openapi.json"


SERVED = list(operations(Router(ONE)))
GUARDED = [(method, path) for method, path in SERVED if path not in [*OPEN, *DATA_PLANE, ABORT]]
READS = [path for method, path in GUARDED if method == "GET"]
CHANGES = [(method, path) for method, path in GUARDED if method != "GET"]


def test_what_is_served() -> None:
    """The tests below speak of all of it."""
    assert {path for _, path in SERVED} >= {*OPEN, *DATA_PLANE}
    assert {method for method, _ in CHANGES} == {"POST", "PUT", "PATCH", "DELETE"}
    assert len(READS) >= 4
    assert len(CHANGES) >= 6


@pytest.mark.parametrize("path", OPEN)
@pytest.mark.parametrize("settings", [WITH_ADMIN_KEY, WITH_API_KEY, WITH_BOTH])
async def test_probes_are_open_to_everybody(path: str, settings: AdminSettings) -> None:
    async with Router(ONE, settings=settings).client(REMOTE) as client:
        assert (await client.get(path)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": f"Bearer {API_KEY}"},
        {"authorization": f"Bearer {ADMIN_KEY}x"},
        {"authorization": f"Bearer {ADMIN_KEY[:-1]}"},
        {"authorization": f"Basic {ADMIN_KEY}"},
        {"authorization": ADMIN_KEY},
        {"authorization": "Bearer "},
        {"authorization": "Bearer \xe4"},
        {"x-api-key": API_KEY},
        {"x-api-key": ""},
        {"authorization": "Bearer x", "x-api-key": ADMIN_KEY},
    ],
)
async def test_nothing_else_without_the_admin_key(headers: dict[str, str]) -> None:
    router = Router(ONE, settings=WITH_BOTH)
    encoded = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    async with router.client(LOCAL) as client:
        for method, path in GUARDED:
            response = await client.request(method, path, headers=encoded, content=b"{")
            assert error_of(response) == (401, "unauthorized")
            assert response.headers["www-authenticate"] == 'Bearer realm="control-plane"'
    assert [worker.url for worker in router.registry] == [ONE]
    assert not router.plugins.calls
    assert not router.engines.asked


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ADMIN_KEY}"},
        {"authorization": f"bearer   {ADMIN_KEY} "},
        {"x-api-key": ADMIN_KEY},
        {"authorization": "Basic dTpw", "x-api-key": ADMIN_KEY},
    ],
)
async def test_everything_with_the_admin_key(headers: dict[str, str]) -> None:
    async with Router(ONE, settings=WITH_ADMIN_KEY).client(REMOTE) as client:
        for method, path in GUARDED:
            response = await client.request(method, path, headers=headers)
            assert response.status_code not in (401, 403)


@pytest.mark.parametrize("path", DATA_PLANE)
async def test_the_data_plane_has_its_own_key(path: str) -> None:
    router = Router(ONE, settings=WITH_BOTH)
    router.engines.answer(ONE, path, b'{"data": []}')
    async with router.client(LOCAL) as client:
        for headers in ({}, ADMIN):
            response = await client.get(path, headers=headers)
            assert error_of(response) == (401, "invalid_api_key")
            assert response.headers["www-authenticate"] == 'Bearer realm="data-plane"'
        assert not router.engines.asked
        assert (await client.get(path, headers=DATA)).status_code == 200
        assert (await client.get(path, headers={"x-api-key": API_KEY})).status_code == 200


@pytest.mark.parametrize("path", DATA_PLANE)
async def test_the_data_plane_is_open_without_a_key(path: str) -> None:
    router = Router(ONE, settings=WITH_ADMIN_KEY)
    router.engines.answer(ONE, path, b'{"data": []}')
    async with router.client(REMOTE) as client:
        assert (await client.get(path)).status_code == 200


LOOPBACK = ["127.0.0.1", "127.8.9.10", "::1", "::ffff:127.0.0.1"]
ELSEWHERE = ["192.0.2.7", "::ffff:192.0.2.7", "0.0.0.0", "::", "2001:db8::1", "localhost", ""]


@pytest.mark.parametrize("address", LOOPBACK)
async def test_changes_from_this_machine(address: str) -> None:
    async with Router(ONE).client(address) as client:
        for method, path in CHANGES:
            response = await client.request(method, path, params={"url": TWO})
            assert response.status_code not in (401, 403)


@pytest.mark.parametrize("address", ELSEWHERE)
@pytest.mark.parametrize("settings", [AdminSettings(), WITH_API_KEY])
async def test_no_changes_from_elsewhere(address: str, settings: AdminSettings) -> None:
    router = Router(ONE, settings=settings)
    async with router.client(address) as client:
        for method, path in CHANGES:
            response = await client.request(method, path, params={"url": TWO}, headers=DATA)
            assert error_of(response) == (403, "forbidden")
    assert [worker.url for worker in router.registry] == [ONE]
    assert not router.plugins.calls
    assert not router.engines.asked


async def test_a_client_without_an_address_is_from_elsewhere() -> None:
    router = Router()
    async with router.client(None) as client:
        assert error_of(await client.post(f"/add_worker?url={ONE}")) == (403, "forbidden")


@pytest.mark.parametrize("header", ["Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"])
async def test_no_changes_through_a_proxy_on_this_machine(header: str) -> None:
    router = Router(ONE)
    async with router.client(LOCAL) as client:
        for method, path in CHANGES:
            response = await client.request(
                method, path, params={"url": TWO}, headers={header: LOCAL}
            )
            assert error_of(response) == (403, "forbidden")
    assert [worker.url for worker in router.registry] == [ONE]
    assert not router.plugins.calls


async def test_reading_is_open_without_a_key() -> None:
    async with with_plugin(Router(ONE)).client(REMOTE) as client:
        for path in READS:
            assert (await client.get(path)).status_code == 200


async def test_reading_needs_the_data_planes_key_where_there_is_no_other() -> None:
    """As at the peers; but on this machine no key is needed."""
    router = with_plugin(Router(ONE, settings=WITH_API_KEY))
    async with router.client(REMOTE) as remote, router.client(LOCAL) as local:
        for path in READS:
            assert error_of(await remote.get(path)) == (401, "invalid_api_key")
            assert (await remote.get(path, headers=DATA)).status_code == 200
            assert (await local.get(path)).status_code == 200
            relayed = await local.get(path, headers={"x-forwarded-for": REMOTE})
            assert error_of(relayed) == (401, "invalid_api_key")


FOREIGN = ["https://evil.test", "null", "http://127.0.0.1:30000", "*", "", "https://good.test:1"]


@pytest.mark.parametrize("origin", FOREIGN)
@pytest.mark.parametrize("allowed", [[], ["https://good.test"], ["*"]])
async def test_no_changes_from_pages_of_other_origins(origin: str, allowed: list[str]) -> None:
    router = Router(ONE, settings=AdminSettings(cors_origins=frozenset(allowed)))
    async with router.client(LOCAL, origin=origin) as client:
        for method, path in CHANGES:
            response = await client.request(method, path, params={"url": TWO})
            assert error_of(response) == (403, "forbidden")
        assert (await client.get("/workers")).status_code == 200
    assert [worker.url for worker in router.registry] == [ONE]
    assert not router.plugins.calls


async def test_changes_from_pages_of_allowed_origins() -> None:
    router = Router(settings=AdminSettings(cors_origins=frozenset({"https://good.test"})))
    async with router.client(LOCAL, origin="https://good.test") as client:
        response = await client.post("/add_worker", params={"url": ONE})
    assert response.status_code == 200
    assert len(router.registry) == 1


@pytest.mark.parametrize(
    ("allowed", "status"), [([], 403), (["https://good.test"], 403), (["*"], 200)]
)
async def test_with_the_admin_key_any_page_where_all_are_allowed(
    allowed: list[str], status: int
) -> None:
    settings = AdminSettings(admin_key=ADMIN_KEY.encode(), cors_origins=frozenset(allowed))
    async with Router(settings=settings).client(REMOTE, origin="https://any.test") as client:
        response = await client.post("/add_worker", params={"url": ONE}, headers=ADMIN)
    assert response.status_code == status


async def test_one_allowed_origin_does_not_cover_for_another() -> None:
    router = Router(settings=AdminSettings(cors_origins=frozenset({"https://good.test"})))
    headers = [("origin", "https://good.test"), ("origin", "https://evil.test")]
    async with router.client(LOCAL) as client:
        response = await client.post("/add_worker", params={"url": ONE}, headers=headers)
    assert error_of(response) == (403, "forbidden")


LOCKED = Router(settings=WITH_ADMIN_KEY)


@given(shown=st.binary(max_size=20) | st.just(ADMIN_KEY.encode()))
async def test_one_key_opens_and_no_other(shown: bytes) -> None:
    line = bytes(b for b in shown if b not in b"\r\n\0")
    async with LOCKED.client(LOCAL) as client:
        response = await client.get("/list_workers", headers=[(b"x-api-key", line)])
    expected = 200 if line.strip(b" \t") == ADMIN_KEY.encode() else 401
    assert response.status_code == expected


async def test_keys_are_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    router = Router(settings=WITH_BOTH)
    caplog.set_level(logging.DEBUG)
    async with router.client(LOCAL) as client:
        spec = {"url": ONE, "api_key": "engine-key"}
        answers = [
            await client.post("/workers", json=spec, headers=ADMIN),
            await client.get("/workers", headers=ADMIN),
            await client.get("/workers", headers={"authorization": "Bearer shown-key"}),
            await client.post(
                "/workers", json={"url": TWO, "api_key": "engine-key\n"}, headers=ADMIN
            ),
        ]
    assert [answer.status_code for answer in answers] == [202, 200, 401, 400]
    shown = repr(router.control) + caplog.text + "".join(a.text for a in answers)
    for secret in ("engine-key", ADMIN_KEY, API_KEY, "shown-key"):
        assert secret not in shown


def test_an_empty_key_is_none() -> None:
    with pytest.raises(AssertionError):
        AdminSettings(admin_key=b"")
    with pytest.raises(AssertionError):
        AdminSettings(api_key=b"")
