"""Things that hold resources until they are closed."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Handle:
    """A context manager that closes itself; nothing relies on garbage collection."""

    def close(self) -> None:
        """Release what is held; it cannot be used afterwards."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
