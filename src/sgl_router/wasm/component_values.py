"""The values that a component is called with.

To make such a tree anew for each call takes ten times as long as the call. So a tree is laid out
once, for each shape of it: a `Block` knows where in it each field stands, `WorkerValues` is the
list of workers of one `WorkerFrame`, and a call fills in numbers and the addresses of texts only.
An option's value is there whether it is pointed at or not.
"""

from array import array
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

from sgl_router.wasm.abi.component_v1 import (
    INPUT,
    OUTCOME,
    WORKER,
    ComponentInput,
    ComponentOutcome,
    Info,
    Metrics,
)
from sgl_router.wasm.component_blocks import (
    FIELD_NAMES,
    KINDS,
    TUPLE,
    VALUE_WORDS,
    WORD_BYTES,
    Block,
    Texts,
    Words,
)

_N = TypeVar("_N", int, float)

_Part = tuple[int, int, int]
"""Of a text its length's word, of a number its own; then its option's word and the address of what
that holds, both 0 where it is in no option."""


class WorkerValues:
    """The list of workers of one frame.

    Attributes:
        address: of the first worker's value; those of the others follow it.
        count: of workers.
    """

    __slots__ = (
        "_ages",
        "_has_kv",
        "_has_metrics",
        "_has_ttft",
        "_kv",
        "_kv_at",
        "_labels",
        "_loads",
        "_metrics_at",
        "_pending",
        "_prefix",
        "_queued",
        "_running",
        "_texts",
        "_ttft",
        "_ttft_at",
        "_words",
        "address",
        "count",
    )

    def __init__(self, given: ComponentInput) -> None:
        """Lay them out as the frame of an input says; its numbers are not filled in yet."""
        frame = given.frame
        self.count = count = len(frame.urls)
        self._words = words = Words(count * len(_WORKER.words))
        self.address = words.address
        words.whole[: count * VALUE_WORDS] = _WORKER.words[:VALUE_WORDS] * count
        words.whole[count * VALUE_WORDS : count * len(_WORKER.words)] = (
            _WORKER.words[VALUE_WORDS:] * count
        )
        for word, to in _WORKER.links:
            words.whole[self._column(word)] = self._addresses(to)
        for word, name in _WORKER.names:
            words.whole[self._column(word)] = array("Q", [FIELD_NAMES.address_of(name)]) * count
        self._texts = [self._put_texts("url", frame.urls)]
        self._numbers("healthy")[:] = array("Q", frame.healthy)
        self._loads = self._numbers("load")
        self._pending = self._numbers("pending-tokens")
        self._prefix = self._numbers("prefix-match")
        if given.pending_tokens is not None:
            self._numbers("pending-tokens?")[:] = self._held("pending-tokens?")
        if given.prefix_match is not None:
            self._numbers("prefix-match?")[:] = self._held("prefix-match?")
        self._labels: list[tuple[Words, Texts]] = []
        self._lay_metrics()
        self._lay_info(frame.infos)

    def fill(self, given: ComponentInput) -> None:
        """With the numbers of one decision, whose frame this is."""
        self._loads[:] = array("Q", given.loads)
        if given.pending_tokens is not None:
            self._pending[:] = array("Q", given.pending_tokens)
        if given.prefix_match is not None:
            self._prefix[:] = array("Q", given.prefix_match)
        if given.metrics is not None:
            self._fill_metrics(given.metrics)
        if given.ttft_ms is not None:
            self._has_ttft[:] = _where_known(given.ttft_ms, self._ttft_at)
            self._ttft[:] = array("d", [ttft_ms or 0.0 for ttft_ms in given.ttft_ms])

    def _lay_metrics(self) -> None:
        self._metrics_at = self._held("engine-metrics?")
        self._has_metrics = self._numbers("engine-metrics?")
        self._queued = self._numbers("engine-metrics.queued")
        self._running = self._numbers("engine-metrics.running")
        self._kv_at = self._held("engine-metrics.kv-usage?")
        self._has_kv = self._numbers("engine-metrics.kv-usage?")
        self._kv = self._floats("engine-metrics.kv-usage")
        self._ages = self._numbers("engine-metrics.metrics-age-ms")

    def _fill_metrics(self, metrics: list[Metrics | None]) -> None:
        known = [_NO_METRICS if said is None else said for said in metrics]
        self._has_metrics[:] = _where_known(metrics, self._metrics_at)
        self._queued[:] = array("Q", [said[0] for said in known])
        self._running[:] = array("Q", [said[1] for said in known])
        usages = [said[2] for said in known]
        self._has_kv[:] = _where_known(usages, self._kv_at)
        self._kv[:] = array("d", [usage or 0.0 for usage in usages])
        self._ages[:] = array("Q", [said[3] for said in known])

    def _lay_info(self, infos: list[Info] | None) -> None:
        self._ttft_at = self._held("worker-info.ttft-ms?")
        self._has_ttft = self._numbers("worker-info.ttft-ms?")
        self._ttft = self._floats("worker-info.ttft-ms")
        if infos is None:
            return
        self._numbers("worker-info?")[:] = self._held("worker-info?")
        self._texts.append(self._put_texts("worker-info.id", [info[0] for info in infos]))
        weights = array("d", [info[1] for info in infos])
        self._floats("worker-info.weight")[:] = weights
        labels = [_laid_labels(info[2]) for info in infos]
        self._labels = labels
        words = self._words
        at = _WORKER.fields["worker-info.labels"]
        words.whole[self._column(at)] = array("Q", [len(info[2]) for info in infos])
        words.whole[self._column(at + 1)] = array("Q", [laid.address for laid, _ in labels])

    def _column(self, word: int) -> slice:
        """A word of each worker: where it stands."""
        values = self.count * VALUE_WORDS
        if word < VALUE_WORDS:
            return slice(word, values, VALUE_WORDS)
        rest = len(_WORKER.words) - VALUE_WORDS
        return slice(values + word - VALUE_WORDS, values + rest * self.count, rest)

    def _numbers(self, field: str) -> "memoryview[int]":
        return self._words.whole[self._column(_WORKER.fields[field])]

    def _floats(self, field: str) -> "memoryview[float]":
        return self._words.floats[self._column(_WORKER.fields[field])]

    def _addresses(self, word: int) -> "array[int]":
        """Of a word of each worker that is not part of the value itself."""
        rest = len(_WORKER.words) - VALUE_WORDS
        first = self._words.at(self.count * VALUE_WORDS + word - VALUE_WORDS)
        step = WORD_BYTES * rest
        return array("Q", range(first, first + step * self.count, step))

    def _held(self, option: str) -> "array[int]":
        return self._addresses(_WORKER.held[option])

    def _put_texts(self, field: str, texts: Sequence[bytes]) -> Texts:
        """A text for each worker; to be kept for as long as the values."""
        kept, words = Texts(b"".join(texts)), self._words
        lengths = [len(text) for text in texts]
        at = _WORKER.fields[field]
        words.whole[self._column(at)] = array("Q", lengths)
        starts = accumulate(lengths[:-1], initial=kept.address)
        words.whole[self._column(at + 1)] = array("Q", starts if lengths else [])
        return kept


_WORKER = Block(WORKER)
_NO_METRICS: Metrics = (0, 0, None, 0)


def _where_known(values: Sequence[object], addresses: "array[int]") -> "array[int]":
    """The addresses of what an option holds, 0 where there is nothing."""
    if None not in values:
        return addresses
    return array("Q", [0 if v is None else at for v, at in zip(values, addresses, strict=True)])


def _laid_labels(labels: tuple[tuple[bytes, bytes], ...]) -> tuple[Words, Texts]:
    """A `list<tuple<string, string>>`: its elements, and their texts."""
    texts = [text for label in labels for text in label]
    kept = Texts(b"".join(texts))
    words = Words(len(labels) * VALUE_WORDS + len(texts) * VALUE_WORDS)
    at, start = len(labels) * VALUE_WORDS, kept.address
    for i in range(len(labels)):
        words.whole[i * VALUE_WORDS] = TUPLE
        words.whole[i * VALUE_WORDS + 1] = 2
        words.whole[i * VALUE_WORDS + 2] = words.at(at + 2 * i * VALUE_WORDS)
    for i, text in enumerate(texts):
        words.whole[at + i * VALUE_WORDS] = KINDS["string"]
        words.whole[at + i * VALUE_WORDS + 1] = len(text)
        words.whole[at + i * VALUE_WORDS + 2] = start
        start += len(text)
    return words, kept


class _Parts:
    """A value of one type whose parts are filled in one by one."""

    def __init__(self, block: Block) -> None:
        self.words = block.made()
        self.address = self.words.address
        self._fields = block.fields
        self._held = {path: self.words.at(word) for path, word in block.held.items()}
        self._texts = Texts()

    def _part(self, path: str) -> _Part:
        option = f"{path}?"
        return self._fields[path], self._fields.get(option, 0), self._held.get(option, 0)

    def _fill_texts(self, parts: Sequence[_Part], texts: Sequence[bytes | None]) -> None:
        whole = self.words.whole
        at = self._texts.put(b"".join([text for text in texts if text]))
        for text, (length, option, held) in zip(texts, parts, strict=True):
            if option:
                whole[option] = 0 if text is None else held
            if text is not None:
                whole[length] = len(text)
                whole[length + 1] = at
                at += len(text)

    def _fill_option(self, part: _Part, words: "memoryview[_N]", number: _N | None) -> None:
        """`words` are `self.words` as what the number is."""
        word, option, held = part
        self.words.whole[option] = 0 if number is None else held
        if number is not None:
            words[word] = number


class InputValue(_Parts):
    """The parameter of `select-worker`.

    Attributes:
        address: of the value.
    """

    def __init__(self) -> None:
        super().__init__(_INPUT)
        texts = "request.id", "request.path", "request.model", "request.session", "request-text"
        self._text_at = [self._part(path) for path in (*texts, "state")]
        self._prompt_tokens = self._part("request.prompt-tokens")
        self._workers = self._fields["workers"]
        self._numbers = tuple(
            self._fields[path]
            for path in ("request.stream", "request.attempt", "request.text-bytes")
        )
        self._passing = self._fields["now-ms"], self._fields["entropy"]

    def fill(self, given: ComponentInput, workers: WorkerValues) -> None:
        """With an input; `workers`, filled with the same, has to live on until after the call."""
        whole = self.words.whole
        whole[self._workers] = workers.count
        whole[self._workers + 1] = workers.address
        self._fill_texts(self._text_at, given.texts)
        stream, attempt, text_bytes = self._numbers
        whole[stream] = given.stream
        whole[attempt] = given.attempt
        whole[text_bytes] = given.text_bytes
        self._fill_option(self._prompt_tokens, whole, given.prompt_tokens)
        now_ms, entropy = self._passing
        whole[now_ms] = given.now_ms
        whole[entropy] = given.entropy


class OutcomeValue(_Parts):
    """The parameter of `on-request-complete`.

    Attributes:
        address: of the value.
    """

    def __init__(self) -> None:
        super().__init__(_OUTCOME)
        self._text_at = [self._part(path) for path in ("worker", "error")]
        self._status, self._ttft_ms = self._part("status"), self._part("ttft-ms")
        self._numbers = tuple(
            self._fields[path] for path in ("success", "output-chunks", "duration-ms")
        )

    def fill(self, given: ComponentOutcome) -> None:
        """With an outcome."""
        whole, floats = self.words.whole, self.words.floats
        self._fill_texts(self._text_at, (given.worker, given.error))
        success, output_chunks, duration_ms = self._numbers
        whole[success] = given.success
        whole[output_chunks] = given.output_chunks
        floats[duration_ms] = given.duration_ms
        self._fill_option(self._status, whole, given.status)
        self._fill_option(self._ttft_ms, floats, given.ttft_ms)


class TextValue(_Parts):
    """A parameter that is a text.

    Attributes:
        address: of the value.
    """

    def __init__(self, text: bytes) -> None:
        super().__init__(_TEXT)
        self._fill_texts([self._part("")], (text,))


_INPUT, _OUTCOME, _TEXT = Block(INPUT), Block(OUTCOME), Block("string")
