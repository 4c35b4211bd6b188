"""The table encoding, version 1: of what a plugin is given, only what has changed is written.

The guest has a table for each pool of workers, with a record of 64 bytes for each worker. A worker
whose numbers change is added to the sets that watch it (`Worker.touched`), so that a decision looks
at those workers only, however many there are.

Numbers are little-endian. A worker's record: `u32 worker_id, u32 flags` (bit 0: healthy), `i32
load, i32 running, i32 queued, f32 kv_usage, f32 ttft_ms, f32 weight, u64 url_hash, u32
metrics_age_ms, u32 pending_tokens, u32 prefix_match_tokens`. The request's record: `u64 entropy,
u64 now_ms, u64 session_hash, u64 model_hash, u32 text_ptr, u32 text_len, u32 attempt, u32 flags`
(bit 0: stream; bit 1: all workers are healthy), `u32 prompt_tokens, u32 prefix_ptr, u32
prefix_count`. What is left of the 64 bytes is zero. Hashes are xxh3-64.
"""

import weakref
from collections.abc import Collection, Iterable
from math import nan
from struct import Struct
from typing import Protocol

from sgl_router.core.registry import Pool, WorkerView
from sgl_router.core.request import CHARACTERS_PER_TOKEN, RequestView
from sgl_router.core.worker import Worker
from sgl_router.wasm.abi.hashes import HASH_BYTES, cut, hash_of, prefix_hashes
from sgl_router.wasm.calls import GuestMemory

MAX_TABLES = 8
"""Pools with a table of their own at a time; there is one for each role and model."""

METRICS_REFRESH_MS = 100
"""How much older an engine's metrics may be than their record says."""

RECORD_BYTES = 64
UNKNOWN_AGE = 2**32 - 1
"""Of metrics that there are none of: as old as can be said."""

ALL_HEALTHY = 2
"""Of a request's flags: a guest need not look at each worker to count those that may be picked."""

HEAD_AT = 96
"""Where in the exchange the host writes."""

ENTRIES_AT = 176
"""Where in the exchange the changed records begin."""

_MIN_TEXT_ROOM = 1024
_HEAD = Struct("<4I4Q7I4x")  # four numbers for the driver, and the request's record
_ENTRY = Struct("<I2I3i3fQ3I12x")  # an index, and a worker's record
_ENTRY_BYTES = _ENTRY.size
_MAX_F32 = 3.4028234663852886e38
_MAX_U32 = 2**32 - 1
_NO_METRICS = (-1, -1, nan, UNKNOWN_AGE)

_head_into = _HEAD.pack_into
_plain_into = Struct("<4I2Q").pack_into  # its beginning: as far as it is never the same
_entry_into = _ENTRY.pack_into

Buffer = memoryview | bytearray


class Exchange(Protocol):
    """Where an encoder writes; see `TableDriver`."""

    exchange: GuestMemory
    token: object
    taken: bool

    def room(self, size: int) -> memoryview: ...


Asked = tuple[int, int, bool, int, int, int, bytes]
"""Of a request: `session_hash`, `model_hash`, whether it streams, `prompt_tokens`, `text_len`,
`prefix_count`, and the hashes and the text."""

_NOTHING_ASKED: Asked = (0, 0, False, 0, 0, 0, b"")
Places = dict[Worker, tuple[int, int, int]]
"""For each worker of a view its index, its `worker_id` and its `url_hash`."""


class _Table:
    """What the guest knows of one pool.

    Attributes:
        slot: the number of the guest's table.
        view: the one that was written last.
        members, healthy, places: of that view.
        room: how large the guest's table is to be, in bytes.
        dirty: workers whose records are to be written.
        matched: workers whose `prefix_match_tokens` were not 0 the last time.
        aged_at_ms: when all `metrics_age_ms` were written.
    """

    __slots__ = (
        "aged_at_ms",
        "dirty",
        "healthy",
        "matched",
        "members",
        "places",
        "room",
        "slot",
        "view",
    )

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.view: WorkerView | None = None
        self.members: tuple[Worker, ...] = ()
        self.healthy: tuple[bool, ...] = ()
        self.places: Places = {}
        self.room = 0
        self.dirty: set[Worker] = set()
        self.matched: set[Worker] = set()
        self.aged_at_ms = 0

    def see(self, workers: WorkerView) -> None:
        """Note what is not as it was in the view before."""
        self.view = workers
        members, healthy = workers[:], workers.healthy
        if members is not self.members and members != self.members:
            self._enrol(members)
        elif healthy != self.healthy:
            changed = zip(members, healthy, self.healthy, strict=True)
            self.dirty.update(worker for worker, after, before in changed if after is not before)
        self.healthy = healthy

    def _enrol(self, members: tuple[Worker, ...]) -> None:
        """Others are in the pool, or in another order: all records are written."""
        self.leave()
        self.members = members
        self.places = _places(members, self.places)
        self.dirty.update(members)
        for worker in members:
            worker.watched_by += (self.dirty,)
        if len(members) * RECORD_BYTES > self.room:
            self.room = _table_room(len(members))

    def leave(self) -> None:
        """Watch no worker any more."""
        dirty = self.dirty
        for worker in self.members:
            worker.watched_by = tuple(w for w in worker.watched_by if w is not dirty)
        self.members = ()
        dirty.clear()
        self.matched.clear()


class TableEncoder:
    """Writes into a guest's exchange; one thread's at a time.

    It may be used for one guest after another: each gets whole tables at first. `close` ends the
    watching of workers.

    Args:
        needs: what the plugin's manifest asks for: here `request_text`, `pending_tokens`,
            `prefix_match` and `engine_metrics`.
        max_text_bytes: where the text is cut, at a character's boundary.
        reads_body: if not, whatever the body would tell stands for that of an empty one.
    """

    def __init__(
        self, needs: Collection[str], max_text_bytes: int, reads_body: bool = True
    ) -> None:
        self._with_text = "request_text" in needs
        self._with_tokens = "pending_tokens" in needs
        self._with_prefixes = "prefix_match" in needs
        self._with_metrics = "engine_metrics" in needs
        self._passing = self._with_prefixes or self._with_metrics
        self._max_text_bytes = max_text_bytes
        self._reads_body = reads_body
        self._tables: dict[Pool, _Table] = {}
        self._whole = _Table(0)  # of the last snapshot
        weakref.finalize(self, _leave_all, self._tables).atexit = False
        self._token: object = None
        # Whose head is in the exchange, for a request of which nothing is told.
        self._plain: _Table | None = None

    def encode(self, to: Exchange, workers: WorkerView, request: RequestView) -> int:
        """Write what the guest does not know yet; returns the slot for `TableDriver.select`.

        What is written is for the next call of this guest, and for no other.
        Raises GuestError (`out_of_memory`) where the exchange has no room for it.
        """
        table = self._tables.get(workers.pool)
        if table is None or to.token is not self._token or not to.taken:
            table = self._begun(to, workers.pool)
        to.taken = False
        if workers is not table.view:
            table.see(workers)
            self._plain = None
        if self._passing:
            self._note_what_passes(table, request)
        asked = _NOTHING_ASKED
        if self._reads_body or request.routing_key is not None:
            asked = self._asked(request)
        dirty = table.dirty
        changed = len(dirty)
        text_at = ENTRIES_AT + changed * _ENTRY_BYTES
        data = asked[-1]
        end = text_at + len(data)
        exchange = to.exchange.bytes
        if end > len(exchange):
            exchange = to.room(end)
        if changed:
            self._write_records(exchange, table, dirty, request)
            dirty.clear()
        if data:
            exchange[text_at:end] = data
        if asked is _NOTHING_ASKED and not request.attempt:
            if table is self._plain:  # only this of it has changed since
                rooms = len(table.healthy), changed, table.room, 0
                _plain_into(exchange, HEAD_AT, *rooms, request.entropy, request.now_ms)
                return table.slot
            self._plain = table
        else:
            self._plain = None
        _write_head(exchange, table, changed, request, asked)
        return table.slot

    def snapshot(self, workers: WorkerView, request: RequestView) -> bytes:
        """All that any guest has to be told for a decision, for `TableDriver.select_from`.

        It costs something for each worker. It is for decisions that wait for their turn.
        """
        table = self._whole
        members = workers[:]
        if members is not table.members:
            table = self._whole = _Table(0)
            table.members, table.places = members, _places(members, {})
            table.room = _table_room(len(members))
        table.healthy = workers.healthy
        asked = self._asked(request)
        exchange = bytearray(ENTRIES_AT + len(members) * _ENTRY_BYTES)
        self._write_records(exchange, table, members, request)
        _write_head(exchange, table, len(members), request, asked)
        return bytes(exchange[HEAD_AT:]) + asked[-1]

    def close(self) -> None:
        """Watch no worker any more."""
        _leave_all(self._tables)
        self._whole = _Table(0)

    def _begun(self, to: Exchange, pool: Pool) -> _Table:
        """The table of a pool that has none, or for a guest that is not known to have it."""
        if to.token is not self._token or not to.taken:
            self._token = to.token
            self._plain = None
            for table in self._tables.values():
                table.dirty.update(table.members)
        found = self._tables.get(pool)
        if found is None:
            slot = len(self._tables)
            if slot == MAX_TABLES:
                oldest = self._tables.pop(next(iter(self._tables)))
                oldest.leave()
                slot = oldest.slot
            found = self._tables[pool] = _Table(slot)
        return found

    def _note_what_passes(self, table: _Table, request: RequestView) -> None:
        """What is to be written although nothing has happened to the worker."""
        dirty = table.dirty
        if self._with_metrics and not (0 <= request.now_ms - table.aged_at_ms < METRICS_REFRESH_MS):
            table.aged_at_ms = request.now_ms
            dirty.update(worker for worker in table.members if worker.metrics is not None)
        if self._with_prefixes:
            dirty |= table.matched
            table.matched.clear()
            prefix = request.prefix
            if prefix is not None and prefix.characters:
                of = prefix.of
                table.matched.update(worker for worker in table.members if of(worker))
                dirty |= table.matched

    def _asked(self, request: RequestView) -> Asked:
        if not self._reads_body:
            return hash_of(request.routing_key), 0, False, 0, 0, 0, b""
        tokens = min(request.prompt_tokens, _MAX_U32) if self._with_tokens else 0
        text, hashes = b"", b""
        if self._with_text:
            text = cut(request.text or "", self._max_text_bytes)
            hashes = prefix_hashes(text)
        return (
            hash_of(request.session),
            hash_of(request.model),
            request.stream,
            tokens,
            len(text),
            len(hashes) // HASH_BYTES,
            hashes + text,
        )

    def _write_records(
        self, into: Buffer, table: _Table, workers: Iterable[Worker], request: RequestView
    ) -> None:
        """An entry for each of these workers."""
        places, healthy = table.places, table.healthy
        with_tokens, with_metrics = self._with_tokens, self._with_metrics
        prefix = request.prefix if self._with_prefixes else None
        running, queued, kv_usage, age_ms = _NO_METRICS
        at = ENTRIES_AT
        for worker in workers:
            index, worker_id, url_hash = places[worker]
            if with_metrics:
                running, queued, kv_usage, age_ms = _metrics(worker, request.now_ms)
            ttft_ms, weight = worker.ttft_ms, worker.weight
            _entry_into(
                into,
                at,
                index,
                worker_id,
                healthy[index],
                worker.load,
                running,
                queued,
                kv_usage,
                nan if ttft_ms is None else ttft_ms,
                weight if weight <= _MAX_F32 else _MAX_F32,
                url_hash,
                age_ms,
                min(worker.pending_tokens, _MAX_U32) if with_tokens else 0,
                0 if prefix is None else prefix.of(worker) // CHARACTERS_PER_TOKEN,
            )
            at += _ENTRY_BYTES


def _leave_all(tables: dict[Pool, _Table]) -> None:
    for table in tables.values():
        table.leave()
    tables.clear()


def _write_head(
    into: Buffer, table: _Table, changed: int, request: RequestView, asked: Asked
) -> None:
    """What the driver has to know, and the request's record."""
    session, model, streams, prompt_tokens, text_bytes, hashes, data = asked
    _head_into(
        into,
        HEAD_AT,
        len(table.healthy),
        changed,
        table.room,
        _text_room(len(data)) if data else 0,
        request.entropy,
        request.now_ms,
        session,
        model,
        0,
        text_bytes,
        request.attempt,
        streams | ALL_HEALTHY if all(table.healthy) else streams,
        prompt_tokens,
        0,
        hashes,
    )


def _table_room(count: int) -> int:
    """Some to spare, so that a pool that grows one by one does not move each time."""
    return (count * 9 // 8 + 4) * RECORD_BYTES


def _text_room(size: int) -> int:
    """A quarter to spare, so that each text that is a little longer does not move it."""
    return max(_MIN_TEXT_ROOM, size + size // 4)


def _places(members: tuple[Worker, ...], known: Places) -> Places:
    places: Places = {}
    for index, worker in enumerate(members):
        before = known.get(worker)
        worker_id, url_hash = _names(worker) if before is None else before[1:]
        places[worker] = (index, worker_id, url_hash)
    return places


def _names(worker: Worker) -> tuple[int, int]:
    """`worker_id`, the first eight digits of the id that the router shows, and `url_hash`."""
    return int(worker.id[:8], 16), hash_of(worker.url)


def _metrics(worker: Worker, now_ms: int) -> tuple[int, int, float, int]:
    """`running`, `queued`, `kv_usage` and `metrics_age_ms`."""
    said = worker.metrics
    if said is None:
        return _NO_METRICS
    age_ms = min(max(0, now_ms - said.at_ms), _MAX_U32)  # clocks are set back at times
    return said.running, said.queued, nan if said.kv_usage is None else said.kv_usage, age_ms
