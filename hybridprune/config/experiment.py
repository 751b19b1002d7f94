"""Names of experiments that say what is swept in them (pure)."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

LONGEST = 150
"""Characters of a folder's name."""


def swept_name(base: str, swept: tuple[str, ...]) -> str:
    """A folder's name that says what was swept; a digest keeps names apart that had to be changed or cut."""
    parts = swept if base == "default" and swept else (base, *swept)
    plain = ",".join(parts)
    safe = re.sub(r"[^\w.,=+-]", "_", plain)
    if safe == plain and len(safe) <= LONGEST:
        return safe
    return f"{safe[:LONGEST]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def value_text(value: Any) -> str:
    """A swept value in such a name: JSON, but for texts."""
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
