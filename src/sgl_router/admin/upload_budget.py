"""How much may be uploaded at a time, of all clients together."""

from sgl_router.errors import RequestError

MAX_UPLOADS_BYTES = 160 * 1024 * 1024
"""Of uploads that are arriving or being loaded: two of the largest, and room for core modules."""

RETRY_AFTER_SECS = 5
"""A usual upload is compiled in seconds, a large component in some tens of them."""


class UploadBudget:
    """The bytes that all uploads under way may have together.

    Attributes:
        left: those that none has.
    """

    def __init__(self, limit: int = MAX_UPLOADS_BYTES) -> None:
        self.left = self.limit = limit

    def share(self) -> "UploadShare":
        """What one upload has of it: nothing yet. It must be released."""
        return UploadShare(self)


class UploadShare:
    """See `UploadBudget.share`."""

    def __init__(self, budget: UploadBudget) -> None:
        self._budget = budget
        self._size = 0

    def cover(self, size: int) -> None:
        """Have so many bytes in all, where it has fewer. Raises RequestError (503)."""
        more = size - self._size
        if more <= 0:
            return
        budget = self._budget
        if more > budget.left:
            under_way = budget.limit - budget.left
            raise RequestError(
                503,
                "too_many_uploads",
                f"uploads of {under_way:,} bytes are under way, and this one has at least "
                f"{size:,}; all together may have {budget.limit:,}: try again when they are done",
                retry_after_secs=RETRY_AFTER_SECS,
            )
        budget.left -= more
        self._size = size

    def release(self) -> None:
        """Give it back; a second time: nothing."""
        self._budget.left += self._size
        self._size = 0
