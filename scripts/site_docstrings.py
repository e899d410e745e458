"""Docstrings as Markdown, for the documentation site; an extension of griffe."""

from __future__ import annotations

import re
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`~?\.?([^`]+)`")


class Docstrings(griffe.Extension):
    """Turns roles and the marks of literal blocks into Markdown."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of a module, a class, a function or an attribute."""
        if obj.docstring:
            text = ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"(^|\n)::(\n|$)", r"\1\2", text)
