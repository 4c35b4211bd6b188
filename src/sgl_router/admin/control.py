"""What the control plane needs of the router; the composition root hands it over."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from sgl_router.admin.plugin_control import PluginControl
from sgl_router.core.registry import WorkerRegistry
from sgl_router.core.worker import Worker


class Fetch(Protocol):
    """Asks one worker something."""

    async def __call__(
        self,
        worker: Worker,
        path: str,
        timeout_secs: float,
        headers: bytes = b"",
        *,
        method: bytes = b"GET",
        body: bytes = b"",
    ) -> tuple[int, bytes, bytes]:
        """Status, body and `Content-Type` (empty where there is none) of the whole answer.

        Args:
            worker: who is asked; its URL's path is put before `path`.
            path: from its first slash on.
            timeout_secs: for all of it.
            headers: whole lines to add. `Authorization` is among them where the worker wants it:
                `Worker.api_key` is not added again.
            method, body: the request's.

        Raises EngineError where the worker cannot be reached, is too slow or answers nonsense.
        """


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """Who may do what.

    Attributes:
        admin_key: of the control plane; None: changes are taken from this machine only.
        api_key: of the data plane; None: it is open.
        cors_origins: origins whose pages may call the router, as browsers send them, or `*`.
    """

    admin_key: bytes | None = field(default=None, repr=False)
    api_key: bytes | None = field(default=None, repr=False)
    cors_origins: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.admin_key != b"", "an empty key would be shown by everybody"
        assert self.api_key != b"", "an empty key would be shown by everybody"


@dataclass(frozen=True, slots=True)
class ControlPlane:
    """The router, as its control plane sees it.

    Attributes:
        registry: the workers.
        fetch: asks a worker.
        add_worker: registers a worker, whose URL is not registered, and has it checked.
        drain_worker: gives a worker no more requests; it is removed when its last one has ended,
            at once where it has none.
        draining: whether the router is about to stop.
        verify_ready: asks workers that count as up whether they are, and takes note of those that
            are not; False where it knows that none is left. Takes half a second at most.
        render_metrics: the metrics and their content type, for the client's `Accept`; other work
            is done meanwhile.
        running_on: the worker whose engine has the request of that id, where it is known.
        cache_flushed: told of a worker whose engine has dropped its prefix cache.
        plugins: the plugins, the policies in use and the shadow run.
        settings: keys and origins.
    """

    registry: WorkerRegistry
    fetch: Fetch
    add_worker: Callable[[Worker], None]
    drain_worker: Callable[[Worker], None]
    draining: Callable[[], bool]
    verify_ready: Callable[[], Awaitable[bool]]
    render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    running_on: Callable[[str], Worker | None]
    cache_flushed: Callable[[Worker], None]
    plugins: PluginControl
    settings: AdminSettings = AdminSettings()
