"""Nobody asks here for the description of the control plane."""

from tests.made_once import no_document

__all__ = ["no_document"]
