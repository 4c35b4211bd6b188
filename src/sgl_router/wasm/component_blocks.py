"""Values of the component model in memory, as wasmtime's C API takes them.

A `wasmtime_component_val_t` (`component/val.h`) is four words of 64 bits: its kind, then what it is
or where that is. A record's fields and what an option holds are further such values, elsewhere.
Memory here belongs to Python and is only read by wasmtime, during a call.
"""

import ctypes
from array import array
from collections.abc import Iterator
from itertools import accumulate

from sgl_router.wasm.abi.component_v1 import INPUT, OUTCOME
from sgl_router.wasm.abi.wit_types import ListOf, Option, Primitive, Record, WitType

VALUE_WORDS = 4
_ENTRY_WORDS = 6  # of a record: the name's length and address, the value
WORD_BYTES = 8
KINDS: dict[Primitive, int] = {
    "bool": 0,
    "u16": 4,
    "u32": 6,
    "u64": 8,
    "f64": 10,
    "string": 12,
}
_LIST, _RECORD, TUPLE, _OPTION = 13, 14, 15, 18


class Words:
    """Memory of ours as words, whose address does not change.

    Attributes:
        address: of the first word.
        whole: the words as unsigned numbers.
        floats: the same as floating-point numbers.
    """

    __slots__ = ("_memory", "address", "floats", "whole")

    def __init__(self, count: int) -> None:
        self._memory = (ctypes.c_uint64 * max(1, count))()  # zeros
        self.address = ctypes.addressof(self._memory)
        data = memoryview(self._memory).cast("B")
        self.whole = data.cast("Q")
        self.floats = data.cast("d")

    def at(self, word: int) -> int:
        """The address of a word."""
        return self.address + WORD_BYTES * word


class Texts:
    """Texts one after the other, as bytes whose address does not change."""

    __slots__ = ("_buffer", "_room", "address")

    def __init__(self, data: bytes = b"") -> None:
        self._hold(data, len(data))

    def put(self, data: bytes) -> int:
        """Take these bytes in the place of those before; returns their address."""
        if len(data) > self._room:
            self._hold(data, len(data) * 5 // 4)
        else:
            ctypes.memmove(self.address, data, len(data))
        return self.address

    def _hold(self, data: bytes, room: int) -> None:
        self._room = max(room, 1024)
        self._buffer = ctypes.create_string_buffer(data, self._room)
        self.address = ctypes.addressof(self._buffer)


class _FieldNames:
    """The names of all fields, for as long as the process lives."""

    def __init__(self, *of: Record) -> None:
        names = sorted({name for record in of for name in _names_in(record)})
        starts = accumulate((len(name) for name in names), initial=0)
        self._texts = Texts("".join(names).encode("ascii"))
        self._starts = dict(zip(names, starts, strict=False))

    def address_of(self, name: str) -> int:
        return self._texts.address + self._starts[name]


def _names_in(of: WitType) -> Iterator[str]:
    if isinstance(of, Record):
        for name, field in of.fields:
            yield name
            yield from _names_in(field)
    elif isinstance(of, (Option, ListOf)):
        yield from _names_in(of.of)


FIELD_NAMES = _FieldNames(INPUT, OUTCOME)


class Block:
    """A value of one type: where in a block of words it and its parts stand.

    Attributes:
        words: as they are before anything is filled in: each option is none, and each number 0.
        links: (word, word): the address of the second stands in the first.
        names: (word, name): the address of the name of a field stands in the word.
        fields: the words that a part is filled into, by its path: of a number the one, of a text
            or a list its length, which its address follows, of an option the address of what it
            holds. The path of an option ends in `?`.
        held: the word at which the value begins that an option holds, by the option's path.
    """

    def __init__(self, of: WitType) -> None:
        self.words = array("Q", [0] * VALUE_WORDS)
        self.links: list[tuple[int, int]] = []
        self.names: list[tuple[int, str]] = []
        self.fields: dict[str, int] = {}
        self.held: dict[str, int] = {}
        self._lay(of, 0, "")

    def _lay(self, of: WitType, at: int, path: str) -> None:
        words = self.words
        if isinstance(of, Record):
            words[at], words[at + 1] = _RECORD, len(of.fields)
            entries = self._room(_ENTRY_WORDS * len(of.fields))
            self.links.append((at + 2, entries))
            for i, (name, field) in enumerate(of.fields):
                entry = entries + _ENTRY_WORDS * i
                words[entry] = len(name)
                self.names.append((entry + 1, name))
                self._lay(field, entry + 2, f"{path}.{name}" if path else name)
        elif isinstance(of, Option):
            words[at] = _OPTION
            self.fields[f"{path}?"] = at + 1
            self.held[f"{path}?"] = held = self._room(VALUE_WORDS)
            self._lay(of.of, held, path)
        else:
            assert isinstance(of, (str, ListOf)), "the contract has no others"
            words[at] = _LIST if isinstance(of, ListOf) else KINDS[of]
            self.fields[path] = at + 1

    def _room(self, count: int) -> int:
        at = len(self.words)
        self.words.extend([0] * count)
        return at

    def made(self) -> Words:
        """One such value."""
        made = Words(len(self.words))
        made.whole[:] = self.words
        for word, to in self.links:
            made.whole[word] = made.at(to)
        for word, name in self.names:
            made.whole[word] = FIELD_NAMES.address_of(name)
        return made
