"""The images that options name, and those that a run was trained on, found again by what its folder says."""

from __future__ import annotations

from hybridprune.config import DataOptions
from hybridprune.data import Dataset, hold_out, load_dataset, of_classes
from hybridprune.errors import UserError
from hybridprune.json_text import value_at
from hybridprune.processes import first_on_this_machine
from hybridprune.store.run_folder import RunFolder, RunSpec


def load_images(options: DataOptions, digest: str | None = None) -> Dataset:
    """The data set that the options name. One process of each machine decodes or downloads it for all.

    With a ``digest``, no image is opened in a folder whose listing is of another one: UserError.
    """
    with first_on_this_machine():
        found = load_dataset(
            dataset=options.dataset,
            data_dir=options.data_dir,
            img_type=options.img_type,
            resize=options.resize,
            num_workers=options.num_workers,
            download=options.download,
            cache_dir=options.cache_dir,
            digest=digest,
        )
    if options.validation_from == "test":
        found = hold_out(found)
    return of_classes(found, options.classes) if options.classes else found


def load_dataset_of(
    run: RunFolder, spec: RunSpec, data_dir: str | None, *, cache_dir: str | None = None, download: bool = False
) -> Dataset:
    """The images of ``run``, at ``data_dir`` if they were moved; UserError if they are others or missing.

    A run folder may be a stranger's, so its config.json says only of which kind the images are and where they lay. That
    place is listed, and read if names and sizes of its files are those that the run was trained on (CIFAR's files: if
    they are the published ones). Nothing is written there; ``cache_dir`` and ``download`` are up to the caller.
    """
    try:
        stored = run.read_json("config.json")
        place = stored.get("data_dir")
        options = DataOptions(
            dataset=value_at(stored, "dataset", str),
            data_dir=data_dir if data_dir or place is None else value_at(stored, "data_dir", str),
            img_type=value_at({"img_type": DataOptions.img_type, **stored}, "img_type", str),
            validation_from=value_at(
                {"validation_from": DataOptions.validation_from, **stored}, "validation_from", str
            ),
            classes=tuple(value_at({"classes": [], **stored}, "classes", list)),
            resize=spec.input_size,
            cache_dir=cache_dir,
            download=download,
        )
    except ValueError as error:
        raise UserError(f"{run.path / 'config.json'}: {error}; restore the file") from error
    dataset = load_images(options, spec.dataset_digest)
    if dataset.digest != spec.dataset_digest:
        raise UserError(f"--data_dir: holds other images than {run.path} was trained on; name that run's data")
    return dataset
