"""Names in one word of a command line: with commas between them, and in quotes where one holds a comma, as in CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable


def split_names(word: str) -> list[str]:
    """The names in ``word``, without space around them; ValueError if it is no line of CSV."""
    try:
        found = [name.strip() for line in csv.reader([word], skipinitialspace=True) for name in line]
    except csv.Error as error:
        raise ValueError(f"{word!r}: {error}") from error
    return [name for name in found if name]


def joined_names(names: Iterable[object]) -> str:
    """The word that `split_names` reads as these names."""
    text = io.StringIO()
    csv.writer(text).writerow(list(map(str, names)))
    return text.getvalue().removesuffix("\r\n")
