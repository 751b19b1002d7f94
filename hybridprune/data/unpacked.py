"""Published image sets that a user downloads and unpacks: what is told where something of them is missing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hybridprune.errors import UserError


@dataclass(frozen=True)
class Unpacked:
    """A published image set in the folders of its archive."""

    name: str
    """Of the option ``dataset``."""
    title: str
    address: str
    """Where it is to be had."""
    holds: tuple[str, ...]
    """What its folder has, as relative paths."""

    @property
    def remedy(self) -> str:
        """Words on what to do where something is missing."""
        return f"unpack {self.title} from {self.address} and name its folder"

    def folder(self, data_dir: str | None) -> Path:
        """The folder that holds the set; UserError if none is given, or something is missing."""
        if data_dir is None:
            raise UserError(f"--data_dir is missing: {self.remedy}")
        root = Path(data_dir).expanduser().resolve()
        for name in self.holds:
            if not (root / name).exists():
                raise UserError(f"--data_dir {data_dir}: holds no {name}; {self.remedy}")
        return root

    def refuse_download(self) -> None:
        """UserError: torchvision does not read the set."""
        raise UserError(f"--download: does not fetch {self.name}; {self.remedy} with --data_dir")
