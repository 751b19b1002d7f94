"""Flags in messages, and the names that take their place for those who call from Python (pure)."""

from __future__ import annotations

import re
from collections.abc import Mapping

# In the library an option is written as its flag, which cannot be mistaken for a word of the sentence.
_FLAG = re.compile(r"(?<![\w-])--(?:no-)?(\w+)")


def renamed(message: str, names: Mapping[str, str]) -> str:
    """``message`` with the names of flags in the place of them; a flag without a name stays."""
    return _FLAG.sub(lambda found: names.get(found[1], found[0]), message)
