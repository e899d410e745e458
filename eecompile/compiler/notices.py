"""What libraries say while a network is exported: each thing once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

_NEW = "new_to_eecompile"


@contextmanager
def told_once() -> Iterator[None]:
    """Within, a warning or a line of a log that has been shown is not shown again.

    A network's forward runs once for each exit, timestep and batch size that is verified.
    """
    once, handlers = _Once(), _handlers()
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if once.is_new((category, str(message))):
                shown(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        for handler in handlers:
            handler.addFilter(once)
        try:
            yield
        finally:
            for handler in handlers:
                handler.removeFilter(once)


class _Once(logging.Filter):
    """Lets a message pass once."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[Any] = set()

    def is_new(self, key: Any) -> bool:
        new = key not in self._told
        self._told.add(key)
        return new

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.WARNING:
            return True
        if _NEW not in vars(record):  # several handlers are asked about one record
            vars(record)[_NEW] = self.is_new((record.name, record.getMessage()))
        return bool(vars(record)[_NEW])


def _handlers() -> set[logging.Handler]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = {
        handler
        for logger in loggers
        if isinstance(logger, logging.Logger)
        for handler in logger.handlers
    }
    return found | ({logging.lastResort} if logging.lastResort else set())
