"""The images that a run was trained on, found again by what its folder says."""

from __future__ import annotations

import dataclasses

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, load_dataset
from hybridprune.errors import UserError
from hybridprune.store.run_folder import RunFolder, RunSpec


def load_dataset_of(run: RunFolder, spec: RunSpec, data_dir: str | None, *, download: bool = True) -> Dataset:
    """The images of ``run``, at ``data_dir`` if they were moved; UserError if they are others or missing.

    Without ``download``, files are not fetched even if the run did so.
    """
    stored = run.read_json("config.json")
    known = {f.name for f in dataclasses.fields(DataOptions)}
    options = DataOptions(**{key: value for key, value in stored.items() if key in known})
    dataset = load_dataset(
        dataset=options.dataset,
        data_dir=data_dir or options.data_dir,
        img_type=options.img_type,
        resize=spec.input_size,
        num_workers=options.num_workers,
        download=download and options.download,
        cache_dir=options.cache_dir,
    )
    if dataset.digest != spec.dataset_digest:
        raise UserError(f"--data_dir: holds other images than {run.path} was trained on; name that run's data")
    return dataset
