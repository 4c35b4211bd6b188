"""Types of the component model, as far as the component ABI has them.

Each writes itself as WIT does, the text format in which the component model's interfaces are
described.
"""

from dataclasses import dataclass
from typing import Literal

Primitive = Literal["bool", "u16", "u32", "u64", "f64", "string"]


@dataclass(frozen=True, slots=True)
class Record:
    """Attributes:
    fields: their names and types, in order.
    """

    fields: tuple[tuple[str, "WitType"], ...]

    def __str__(self) -> str:
        return f"record {{ {_listed(self.fields)} }}"


@dataclass(frozen=True, slots=True)
class Option:
    """Attributes:
    of: the type of what may be there.
    """

    of: "WitType"

    def __str__(self) -> str:
        return f"option<{self.of}>"


@dataclass(frozen=True, slots=True)
class ListOf:
    """Attributes:
    of: the type of its elements.
    """

    of: "WitType"

    def __str__(self) -> str:
        return f"list<{self.of}>"


@dataclass(frozen=True, slots=True)
class TupleOf:
    """Attributes:
    of: the types of its elements.
    """

    of: tuple["WitType", ...]

    def __str__(self) -> str:
        return f"tuple<{', '.join(map(str, self.of))}>"


@dataclass(frozen=True, slots=True)
class Result:
    """Attributes:
    ok, err: the types of what the two cases carry; None: nothing.
    """

    ok: "WitType | None"
    err: "WitType | None"

    def __str__(self) -> str:
        return f"result<{'_' if self.ok is None else self.ok}, {self.err}>"


WitType = Primitive | Record | Option | ListOf | TupleOf | Result


@dataclass(frozen=True, slots=True)
class Function:
    """Attributes:
    params: their names and types, in order.
    result: None: it returns nothing.
    """

    params: tuple[tuple[str, WitType], ...]
    result: WitType | None

    def __str__(self) -> str:
        returned = "" if self.result is None else f" -> {self.result}"
        return f"func({_listed(self.params)}){returned}"


def _listed(of: tuple[tuple[str, WitType], ...]) -> str:
    return ", ".join(f"{name}: {type_}" for name, type_ in of)
