"""Suggestions: the word that a user may have meant by one that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def suggest(word: str, known: Iterable[str], least: float = 0.6) -> str:
    """The known word that is closest, as the end of a message; nothing if none is as like as ``least``, 1 at most."""
    folded = {name.lower(): name for name in sorted(known)}
    close = difflib.get_close_matches(word.lower(), folded, n=1, cutoff=least)
    return f", did you mean {folded[close[0]]}?" if close else ""
