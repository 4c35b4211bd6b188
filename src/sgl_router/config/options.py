"""How a field of the schema is spelt and shown: its flag, its variable, its default."""

from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from sgl_router.config.fields import PrefillEngine, WorkerSettings
from sgl_router.config.schema import SECTIONS, RouterConfig

VARIABLE_PREFIX = "SGL_ROUTER_"


class Shape(Enum):
    """How a value is given on a command line and in a variable."""

    SWITCH = "a flag without a value; true or false in a variable"
    VALUE = "one word"
    WORDS = "words, and the flag may be repeated"
    PREFILL = "URL [PORT], and the flag is repeated for each"
    JSON = "no flag; JSON in a variable"


@dataclass(frozen=True, slots=True)
class Option:
    """One option.

    Attributes:
        name: the field's name, and the key in the configuration file.
        section: the title of its topic.
        description: what it does.
        default: as in the schema.
        shape: see `Shape`.
        metavar: what stands for its value in `--help`.
        secret: whether its value is shown nowhere.
    """

    name: str
    section: str
    description: str
    default: Any
    shape: Shape
    metavar: str
    secret: bool

    @property
    def flag(self) -> str | None:
        """The flag of the command line; None where it has none."""
        return None if self.shape is Shape.JSON else flag_of(self.name)

    @property
    def usage(self) -> str:
        """The flag with its values, as a reference shows it; the key where it has no flag."""
        match self.shape:
            case Shape.JSON:
                return self.name
            case Shape.SWITCH:
                return flag_of(self.name)
            case Shape.PREFILL:
                return f"{flag_of(self.name)} URL [PORT]"
            case Shape.WORDS:
                return f"{flag_of(self.name)} {self.metavar} ..."
            case Shape.VALUE:
                return f"{flag_of(self.name)} {self.metavar}"

    @property
    def variable(self) -> str:
        """The environment variable."""
        return variable_of(self.name)

    @property
    def default_text(self) -> str:
        """The default as a person would give it; empty where it is not to be given."""
        if self.secret or self.default is None or self.default is False:
            return ""
        if isinstance(self.default, tuple):
            return " ".join(map(str, self.default))
        # 1800.0 is given as 1800.
        return f"{self.default:.15g}" if isinstance(self.default, float) else str(self.default)


def flag_of(name: str) -> str:
    """The command-line flag of a field."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """The environment variable of a field."""
    return VARIABLE_PREFIX + name.upper()


def _option(section: str, name: str, field: FieldInfo) -> Option:
    shape = _shape(field.annotation)
    return Option(
        name=name,
        section=section,
        description=field.description or "",
        default=field.default,
        shape=shape,
        metavar=_metavar(name, field.annotation, shape),
        secret=_holds(field.annotation, SecretStr),
    )


def _shape(annotation: Any) -> Shape:
    if annotation is bool:
        return Shape.SWITCH
    if get_origin(annotation) is not tuple:
        return Shape.VALUE
    if _holds(annotation, PrefillEngine):
        return Shape.PREFILL
    return Shape.JSON if _holds(annotation, WorkerSettings) else Shape.WORDS


def _holds(annotation: Any, wanted: type) -> bool:
    """Whether a type is mentioned in an annotation, however deep."""
    if annotation is wanted:
        return True
    parts = get_args(annotation)
    if get_origin(annotation) is Annotated:
        parts = parts[:1]
    return any(_holds(part, wanted) for part in parts)


def _metavar(name: str, annotation: Any, shape: Shape) -> str:
    if get_origin(annotation) is Literal:
        return "{" + ",".join(get_args(annotation)) + "}"
    if shape is Shape.PREFILL or name == "decode":
        return "URL"
    last = name.rsplit("_", 1)[-1]
    if last in ("secs", "ms"):
        return last.upper()
    if last in ("path", "paths", "config", "plugin"):
        return "FILE"
    if any(_holds(annotation, number) for number in (int, float)) and last != "port":
        return "SECS" if last == "interval" else "N"
    return last.removesuffix("s").upper()


def _secret_names(model: type[BaseModel]) -> set[str]:
    return {n for n, field in model.model_fields.items() if _holds(field.annotation, SecretStr)}


OPTIONS: dict[str, Option] = {
    name: _option(section.title, name, field)
    for section in SECTIONS
    for name, field in section.model_fields.items()
}
"""Every option by its name, in the order in which they are shown."""

SECRET_NAMES = frozenset(_secret_names(RouterConfig) | _secret_names(WorkerSettings))
"""Keys of which no value is ever shown."""

assert OPTIONS.keys() == RouterConfig.model_fields.keys(), "each option is of one topic"
