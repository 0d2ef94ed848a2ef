"""An extension of Griffe: a docstring's "Example:" is its section of examples, set as code."""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)


class ExampleSections(Extension):
    """Read the heading "Example:" as the "Examples:" of Google's style.

    Example:
        >>> EXAMPLE.sub(r"\\1Examples:", "Example:")
        'Examples:'
    """

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of an object, before it is parsed."""
        if obj.docstring is not None:
            obj.docstring.value = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
