"""A run folder: everything one run of one stage reads again or shows.

``spec.json`` (what the network is), ``config.json`` (resolved), ``split.json``, ``metrics.jsonl``, ``tb/``,
``train_state.pt`` (for resuming), ``selected.safetensors`` (best on validation, as trained), ``last.safetensors``,
``model.safetensors`` (what is shipped: made of the selected weights in one go, once training has ended),
``validation.safetensors`` (stages 1 and 2: its logits) and, written last, ``result.json``: a run is finished exactly
when it is there.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hybridprune.errors import RunFailed, UserError
from hybridprune.json_text import json_text, read_json, value_at
from hybridprune.models.routed import RoutedNetwork
from hybridprune.models.skipnet import GatedNetwork
from hybridprune.store.files import append, sha256, write_atomic, write_bytes, write_json
from hybridprune.store.run_spec import FORMAT as FORMAT
from hybridprune.store.run_spec import RunSpec as RunSpec
from hybridprune.store.weights import check_shapes, load_weights, read_shapes, save_weights


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path
    writes: bool = True
    """False in all but the first of several processes: these read only."""

    @staticmethod
    def named(path: Path) -> RunFolder:
        """The run that a user names by its folder or a file in it; UserError if there is none."""
        if not path.exists():
            raise UserError(f"{path}: no such run; name a run folder or its model.safetensors")
        folder = path if path.is_dir() else path.parent
        if not (folder / "spec.json").is_file():
            inside = min(
                (run.parent for deep in ("*", "*/*") for run in folder.glob(f"{deep}/result.json")), default=""
            )
            such = f", such as {inside}" if inside else ""
            raise UserError(f"{path}: is no run folder, spec.json is missing; name a run folder{such}")
        return RunFolder(folder)

    @property
    def model_file(self) -> Path:
        """The weights of the finished run."""
        return self.path / "model.safetensors"

    @property
    def selected_file(self) -> Path:
        """The weights that training selects. Nothing that follows it rewrites them, so it can be done again."""
        return self.path / "selected.safetensors"

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return (self.path / "result.json").is_file()

    def parent(self) -> RunFolder | None:
        """The finished run that this one started from, None for stage 1: where it lay or, results moved, beside it.

        Raises:
            UserError: if it is gone, or another run lies there now.
        """
        if self.result("parent", object) is None:
            return None
        place, run_id = Path(self.result("parent.path", str)), self.result("parent.run_id", str)
        for folder in (RunFolder(place), RunFolder(self.path.resolve().parent / place.name)):
            if folder.finished and folder.read_json("result.json").get("run_id") == run_id:
                return folder
        raise UserError(f"{place}: the parent of {self.path} is gone; restore it there or beside {self.path.name}")

    def lineage(self) -> Iterator[RunFolder]:
        """The finished run, its parent, and so on up to a run of stage 1; raises as `parent` does."""
        run: RunFolder | None = self
        while run is not None:
            yield run
            run = run.parent()

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files; UserError when it is missing or broken."""
        path = self.path / name
        try:
            record = read_json(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: missing or broken ({error}); is {self.path} a run folder?") from error
        if not isinstance(record, dict):
            raise UserError(f"{path}: must hold a JSON object; restore the file or run the stage again")
        return record

    def result(self, name: str, kind: type, low: float = -math.inf, high: float = math.inf) -> Any:
        """The figure at a dotted name of result.json (`value_at`); UserError when it is missing or broken."""
        try:
            return value_at(self.read_json("result.json"), name, kind, low, high)
        except ValueError as error:
            raise UserError(f"{self.path / 'result.json'}: {error}; restore the file") from error

    def refuse_links(self, *names: str) -> None:
        """UserError if one of these files (``folder/file``), about to be written, would end up outside of the run.

        The folder may be a stranger's, and a link in it leads to whatever file of the user's its maker chose.
        """
        for name in names:
            place = self.path
            for part in Path(name).parts:
                place = place / part
                if place.is_symlink():
                    raise UserError(f"{place}: is a link, and would be written through; remove it")

    def write_json(self, name: str, record: Mapping[str, Any]) -> None:
        """Write one of the folder's JSON files, atomically."""
        if self.writes:
            write_json(self.path / name, record)

    def read_spec(self, name: str = "spec.json") -> RunSpec:
        """The run's specification; UserError when it is missing or broken."""
        record = self.read_json(name)
        if "dense_macs" in record:
            raise UserError(
                f"{self.path}: holds what hybridprune.save wrote, no run; hybridprune.restore puts it together"
            )
        try:
            return RunSpec.from_json(record)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.path / name}: not a run's specification ({error})") from error

    def save_weights(self, name: str, net: torch.nn.Module) -> None:
        """Save the weights as safetensors, atomically."""
        if self.writes:
            save_weights(net, self.path / name)

    def check_weights(self, spec: RunSpec, net: torch.nn.Module) -> None:
        """Save ``net`` as the last weights and load them into what ``spec`` builds; RunFailed if that is not possible.

        What could not be read again after a training must not be trained.
        """
        if not self.writes:
            return
        self.save_weights("last.safetensors", net)
        with torch.device("meta"):
            fresh = spec.network.build()
        try:
            load_weights(fresh, self.path / "last.safetensors", assign=True)
        except Exception as error:  # of any kind: networks have code of their own for it
            raise RunFailed(f"{self.path}: the network cannot be saved and loaded again ({error})") from error

    def load_network(self) -> tuple[RoutedNetwork, RunSpec]:
        """Rebuild the selected network on the CPU and load its weights strictly.

        Raises UserError if the run is not finished, or its weights are missing, truncated, altered, or of another
        architecture.
        """
        spec = self.read_spec()
        if not self.finished:
            raise UserError(f"{self.path}: this run is not finished; run its stage again with --resume")
        expected = self.read_json("result.json").get("model_sha256")
        # The header of the weights says whether the specification is true before memory is taken for it.
        shapes = read_shapes(self.model_file)
        if spec.network.arguments.get("depth", 0) > len(shapes):  # even an empty network takes time for each layer
            raise UserError(
                f"{self.model_file}: checkpoint of another architecture: its {len(shapes)} tensors are too few for "
                f"the {spec.network.arguments['depth']} layers in spec.json; restore the file"
            )
        try:
            with torch.device("meta"):
                planned = spec.network.build()
        except Exception as error:  # whatever a network's or an edit's numbers lead to
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"{self.path / 'spec.json'}: not a run's specification ({reason})") from error
        check_shapes(shapes, planned, self.model_file)
        net = spec.network.build()
        load_weights(net, self.model_file)
        if sha256(self.model_file) != expected:
            raise UserError(f"{self.model_file}: is not the file that result.json describes; run the stage again")
        return net, spec

    def load_gated(self) -> tuple[GatedNetwork, RunSpec]:
        """`load_network` where it has to be a network with gated blocks; UserError if it is a cascade."""
        net, spec = self.load_network()
        if not isinstance(net, GatedNetwork):
            raise UserError(f"{self.path}: is a cascade; name the run of one of its members")
        return net, spec

    def save_state(self, state: Mapping[str, Any]) -> None:
        """Save what resuming needs, atomically."""
        if not self.writes:
            return
        write_atomic(self.state_file, lambda file: _torch_save(dict(state), file))

    @property
    def state_file(self) -> Path:
        """The file that ``save_state`` writes."""
        return self.path / "train_state.pt"

    def load_state(self, content: bytes | None = None) -> dict[str, Any] | None:
        """The state that was saved, or None; loaded without executing code. ``content`` is that file, read before."""
        path = self.state_file
        if content is None and not path.is_file():
            return None
        try:
            return torch.load(path if content is None else io.BytesIO(content), map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many types on a broken archive
            raise UserError(f"{path}: cannot be read; delete it and {self.path} and start the stage anew") from error

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """Add one line to ``metrics.jsonl``."""
        if not self.writes:
            return
        append(self.path / "metrics.jsonl", _line(record))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The records of ``metrics.jsonl`` up to the first line that is torn; none if the file is missing."""
        path = self.path / "metrics.jsonl"
        found: list[dict[str, Any]] = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                break
            if not isinstance(record, dict):
                break
            found.append(record)
        return found

    def rewind_metrics(self, phase: int, epoch: int) -> None:
        """Drop the lines after this phase and epoch, and a torn last line: they are about to be written again."""
        if not self.writes:
            return
        kept = [record for record in self.read_metrics() if (record["phase"], record["epoch"]) <= (phase, epoch)]
        write_bytes(self.path / "metrics.jsonl", "".join(map(_line, kept)).encode())


def _line(record: Mapping[str, Any]) -> str:
    return json_text(record) + "\n"


def _torch_save(content: Any, file: BinaryIO) -> None:
    try:
        torch.save(content, file)
    except RuntimeError as error:  # raised while torch closes its archive, over the system's own error
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
