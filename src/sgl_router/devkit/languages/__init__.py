"""The languages that the kit knows."""

from sgl_router.devkit.language import Language
from sgl_router.devkit.languages.assemblyscript import ASSEMBLYSCRIPT
from sgl_router.devkit.languages.go import GO
from sgl_router.devkit.languages.python import PYTHON
from sgl_router.devkit.languages.rust import RUST
from sgl_router.devkit.languages.zig import ZIG

LANGUAGES: tuple[Language, ...] = (RUST, PYTHON, GO, ZIG, ASSEMBLYSCRIPT)
