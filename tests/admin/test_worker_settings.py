"""What is probably a mistake about a worker, and its key, which is changed and never shown."""

import pytest

from tests.admin.support import Router, up, workers_error_of

ONE = "http://one:8000"


@pytest.mark.parametrize(
    ("url", "doubtful"),
    [(ONE, False), (f"{ONE}/v1", True), (f"{ONE}/a/v1/", True), (f"{ONE}/av1", False)],
)
async def test_a_url_with_the_v1_of_clients_is_doubted(
    url: str, doubtful: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with Router().client() as client:
        response = await client.post("/workers", json={"url": url})
        old = await client.post("/add_worker", params={"url": url.replace("one", "two")})
    assert (response.status_code, old.status_code) == (202, 200)
    assert ("leave out its /v1" in response.json()["message"]) == doubtful
    warned = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 2 * doubtful


async def test_changing_the_key() -> None:
    router = Router(up(ONE, api_key="engine-secret"))
    (worker,) = router.registry
    async with router.client() as client:
        response = await client.patch(f"/workers/{worker.id}", json={"api_key": "new-secret"})
        assert (response.status_code, worker.api_key) == (202, "new-secret")
        for key in ("", "new secret", "new-secret\r\nX: y", "k" * 4097):
            response = await client.patch(f"/workers/{worker.id}", json={"api_key": key})
            assert workers_error_of(response) == (400, "BAD_REQUEST")
            assert "secret" not in response.text
        assert "secret" not in (await client.get(f"/workers/{worker.id}")).text
        await client.patch(f"/workers/{worker.id}", json={"api_key": None})
    assert worker.api_key == "new-secret"
