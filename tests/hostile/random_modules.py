"""Random plugins whose every function is valid: what validation lets through, and nothing else.

Bodies are drawn by type: an expression of a type is made of expressions of the types that it takes
(WebAssembly core specification, section 3.3). They are WebAssembly text, so that a failure can be
read.
"""

from random import Random

from tests.hostile.modules import GOOD, when_long
from tests.wasm.guests import ANSWER_AT, RELEASE, guest

_TYPES = ("i32", "i64", "f32", "f64")
_BINARY = {
    "i32": [
        "add",
        "sub",
        "mul",
        "div_s",
        "div_u",
        "rem_s",
        "rem_u",
        "and",
        "or",
        "xor",
        "shl",
        "shr_s",
        "shr_u",
        "rotl",
    ],
    "i64": [
        "add",
        "sub",
        "mul",
        "div_s",
        "div_u",
        "rem_s",
        "rem_u",
        "and",
        "or",
        "xor",
        "shl",
        "shr_s",
        "shr_u",
        "rotr",
    ],
    "f32": ["add", "sub", "mul", "div", "min", "max", "copysign"],
    "f64": ["add", "sub", "mul", "div", "min", "max", "copysign"],
}
_UNARY = {
    "i32": ["clz", "ctz", "popcnt", "extend8_s", "extend16_s"],
    "i64": ["clz", "ctz", "popcnt", "extend8_s", "extend32_s"],
    "f32": ["abs", "neg", "ceil", "floor", "sqrt", "nearest"],
    "f64": ["abs", "neg", "ceil", "trunc", "sqrt", "nearest"],
}
_FROM = {
    "i32": {"i64": ["wrap_i64"], "f32": ["trunc_f32_s", "trunc_sat_f32_u"], "f64": ["trunc_f64_u"]},
    "i64": {"i32": ["extend_i32_s", "extend_i32_u"], "f64": ["trunc_f64_s", "trunc_sat_f64_s"]},
    "f32": {"i32": ["convert_i32_s", "reinterpret_i32"], "f64": ["demote_f64"]},
    "f64": {"i64": ["convert_i64_u", "reinterpret_i64"], "f32": ["promote_f32"]},
}
_LOADS = {"i32": ["load", "load8_u", "load16_s"], "i64": ["load", "load32_u"], "f32": ["load"]}
_STORES = {"i32": ["store", "store8"], "i64": ["store", "store16"], "f64": ["store"]}
_ODD = (0, 1, 2, 7, 64, 1024, 65_532, 65_535, 65_536, 2**31 - 1, -(2**31), -1, -65_536)

LOCALS = "(local $n i32) " + " ".join(f"(local $v_{kind} {kind})" for kind in _TYPES)
EXTRA = """
  (type $one (func (param i32) (result i32)))
  (table $t 4 funcref) (elem (i32.const 0) $helper0 $helper1)
  (global $g (mut i32) (i32.const 5))"""


class Bodies:
    """Draws expressions and statements for one module.

    Args:
        random: decides everything.
    """

    def __init__(self, random: Random) -> None:
        self.random = random
        self._labels = 0

    def value(self, kind: str, depth: int) -> str:
        """An expression of a type."""
        choice = self.random.randrange(11) if depth > 0 else self.random.randrange(3)
        inner = depth - 1
        match choice:
            case 0 | 1:
                made = f"({kind}.const {self._number(kind)})"
            case 2:
                made = f"(local.get $v_{kind})"
            case 3 | 4:
                operator = self.random.choice(_BINARY[kind])
                made = f"({kind}.{operator} {self.value(kind, inner)} {self.value(kind, inner)})"
            case 5:
                operator = self.random.choice(_UNARY[kind])
                made = f"({kind}.{operator} {self.value(kind, inner)})"
            case 6:
                source = self.random.choice(list(_FROM[kind]))
                operator = self.random.choice(_FROM[kind][source])
                made = f"({kind}.{operator} {self.value(source, inner)})"
            case 7 if kind in _LOADS:
                operator = self.random.choice(_LOADS[kind])
                made = f"({kind}.{operator} {self._offset()} {self._address(inner)})"
            case 8:
                parts = f"{self.value(kind, inner)} {self.value(kind, inner)}"
                made = f"(select {parts} {self.value('i32', inner)})"
            case 9:
                made = (
                    f"(if (result {kind}) {self.value('i32', inner)}"
                    f" (then {self.statement(inner)} {self.value(kind, inner)})"
                    f" (else {self.value(kind, inner)}))"
                )
            case _:
                made = self._special(kind, inner)
        return made

    def _special(self, kind: str, depth: int) -> str:
        if kind != "i32":
            return f"(local.tee $v_{kind} {self.value(kind, depth)})"
        return self.random.choice(
            [
                "(memory.size)",
                "(global.get $g)",
                f"(memory.grow (i32.const {self.random.choice([0, 1, 1, 65_535])}))",
                f"(table.grow $t (ref.null func) (i32.const {self.random.choice([0, 1, 10**6])}))",
                f"(call $helper{self.random.randrange(2)} {self.value('i32', depth)})",
                f"(call_indirect (type $one) {self.value('i32', depth)} (i32.const "
                f"{self.random.randrange(6)}))",
                f"(i64.lt_u {self.value('i64', depth)} {self.value('i64', depth)})",
                f"(f64.le {self.value('f64', depth)} {self.value('f64', depth)})",
            ]
        )

    def statement(self, depth: int) -> str:
        """An instruction that leaves nothing on the stack."""
        inner = depth - 1
        if depth <= 0:
            kind = self.random.choice(_TYPES)
            return f"(local.set $v_{kind} {self.value(kind, 1)})"
        match self.random.randrange(12):
            case 0 | 1:
                kind = self.random.choice(list(_STORES))
                operator = self.random.choice(_STORES[kind])
                value = self.value(kind, inner)
                made = f"({kind}.{operator} {self._offset()} {self._address(inner)} {value})"
            case 2:
                made = (
                    f"(if {self.value('i32', inner)} (then {self.statement(inner)})"
                    f" (else {self.statement(inner)}))"
                )
            case 3:
                made = self._bulk(inner)
            case 4 | 5:
                made = self._counted(inner)
            case 6:
                made = self._branching(inner)
            case 7:
                made = f"(global.set $g {self.value('i32', inner)})"
            case 8:
                made = f"(table.set $t (i32.const {self.random.randrange(6)}) (ref.null func))"
            case 9 if self.random.randrange(6) == 0:
                made = self.random.choice(["(unreachable)", "(loop $forever (br $forever))"])
            case _:
                made = f"{self.statement(inner)} {self.statement(inner)}"
        return made

    def _bulk(self, depth: int) -> str:
        size = self.random.choice([0, 1, 100, 40_000, self.value("i32", depth)])
        count = size if isinstance(size, str) else f"(i32.const {size})"
        if self.random.random() < 0.5:
            return f"(memory.fill {self._address(depth)} {self.value('i32', depth)} {count})"
        return f"(memory.copy {self._address(depth)} {self._address(depth)} {count})"

    def _counted(self, depth: int) -> str:
        label = self._label()
        return (
            f"(local.set $n (i32.const 0)) (loop {label} {self.statement(depth)}"
            f" (local.set $n (i32.add (local.get $n) (i32.const 1)))"
            f" (br_if {label} (i32.lt_u (local.get $n) (i32.const"
            f" {self.random.choice([1, 10, 1000])}))))"
        )

    def _branching(self, depth: int) -> str:
        outer, inner = self._label(), self._label()
        return (
            f"(block {outer} (block {inner} (br_table {inner} {outer} {inner}"
            f" {self.value('i32', depth)})) {self.statement(depth)})"
        )

    def _label(self) -> str:
        self._labels += 1
        return f"$label{self._labels}"

    def _address(self, depth: int) -> str:
        """Mostly an address that there is."""
        if self.random.random() < 0.8:
            return f"(i32.and {self.value('i32', depth)} (i32.const 0x7fff))"
        return self.value("i32", depth)

    def _offset(self) -> str:
        return self.random.choice(["", "", "offset=8", "offset=65535", "offset=0xffffffff"])

    def _number(self, kind: str) -> str:
        if kind in ("i32", "i64"):
            return str(self.random.choice([*_ODD, self.random.randrange(65_536)]))
        return self.random.choice(["0", "-0", "1.5", "-1e30", "nan", "inf", "-inf", "65536"])


def random_plugin(seed: int) -> bytes:
    """A plugin of the contract's exports that does anything else at all; one for each seed.

    Most of them turn only where the input is long, so that they are loaded and then called.
    """
    random = Random(seed)
    bodies = Bodies(random)
    turns = random.random() < 0.75

    def body(size: str, usual: str, share: float) -> str:
        """Mostly what a guest usually does, after statements of any kind."""
        drawn = bodies.statement(4)
        if random.random() < share:
            usual = bodies.value("i32", 4)
        return f"{LOCALS} {when_long(drawn, size) if turns else drawn} {usual}"

    helpers = "".join(
        f"(func $helper{number} (param i32) (result i32) {LOCALS} {bodies.statement(2)}"
        f" (i32.add (local.get 0) (i32.const {number})))"
        for number in range(2)
    )
    usually = "(call $bump (local.get $size))"
    return guest(
        GOOD,
        alloc=body("$size", usually, 0.1) if random.random() < 0.3 else usually,
        dealloc=RELEASE if random.random() < 0.7 else body("$size", RELEASE, 0.0),
        select_worker=body("$len", f"(i32.const {ANSWER_AT})", 0.2),
        init=f"{LOCALS} {bodies.statement(3)}" if random.random() < 0.2 else "",
        memory='(memory (export "memory") 1)',
        extra=EXTRA + helpers,
    )
