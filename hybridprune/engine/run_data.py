"""The images that options name, and those that a run was trained on, found again by what its folder says."""

from __future__ import annotations

import dataclasses

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, load_dataset
from hybridprune.errors import UserError
from hybridprune.processes import first_on_this_machine
from hybridprune.store.run_folder import RunFolder, RunSpec


def load_images(options: DataOptions) -> Dataset:
    """The data set that the options name. One process of each machine decodes or downloads it for all."""
    with first_on_this_machine():
        return load_dataset(
            dataset=options.dataset,
            data_dir=options.data_dir,
            img_type=options.img_type,
            resize=options.resize,
            num_workers=options.num_workers,
            download=options.download,
            cache_dir=options.cache_dir,
        )


def load_dataset_of(run: RunFolder, spec: RunSpec, data_dir: str | None, *, download: bool = True) -> Dataset:
    """The images of ``run``, at ``data_dir`` if they were moved; UserError if they are others or missing.

    Without ``download``, files are not fetched even if the run did so.
    """
    stored = run.read_json("config.json")
    known = {f.name for f in dataclasses.fields(DataOptions)}
    options = DataOptions(**{key: value for key, value in stored.items() if key in known})
    dataset = load_images(
        dataclasses.replace(
            options,
            data_dir=data_dir or options.data_dir,
            resize=spec.input_size,
            download=download and options.download,
        )
    )
    if dataset.digest != spec.dataset_digest:
        raise UserError(f"--data_dir: holds other images than {run.path} was trained on; name that run's data")
    return dataset
