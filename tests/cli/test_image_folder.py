"""All stages on an ImageNet-style tree that is streamed, by worker processes or by none."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import hybridprune
from hybridprune.data.digits import load_digits
from tests.cli.tiny_runs import OWN, SCRIPTS, assert_refused, folder_of, run_here, stage, weights
from tests.networks_and_images import all_pixels
from tests.processes import run_cli

CLASSES, TRAIN, VAL = 4, 12, 4
DATA = (*("--network", "resnet", "--depth", "8", "--width", "4", "--bs", "8", "--device", "cpu"), "--resize", "32")
SMOOTH = (
    *("--label_smoothing", "0.1", "--scheduler_id", "cosine"),
    *("--scheduler_params", '{"0": 0, "0.25": 1, "1": 0}'),
)


def _sources() -> list[list[Image.Image]]:
    """Images of each class: photographs of CIFAR-100 if they are there, else digits."""
    folder = os.environ.get("HYBRIDPRUNE_CIFAR100_PNG")
    if folder is not None:
        classes = sorted(next(Path(folder).rglob("train")).iterdir())[:CLASSES]
        return [[Image.open(file) for file in sorted(each.iterdir())[: TRAIN + VAL]] for each in classes]
    digits = load_digits(resize=16).train
    images = all_pixels(digits).permute(0, 2, 3, 1).numpy()
    return [
        [Image.fromarray(pixels) for pixels in images[np.flatnonzero(digits.labels == label)[: TRAIN + VAL]]]
        for label in range(CLASSES)
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``train`` and ``val`` with JPEG files about 64 pixels wide and high."""
    root = tmp_path_factory.mktemp("photos")
    for label, images in enumerate(_sources()):
        for number, image in enumerate(images):
            split = "train" if number < TRAIN else "val"
            file = root / split / f"n{label:08}" / f"n{label:08}_{number}.JPEG"
            file.parent.mkdir(parents=True, exist_ok=True)
            image.convert("RGB").resize((64 + number, 72 - number)).save(file, "JPEG")
    return root


def _data(tree: Path, workers: int = 0) -> tuple[str, ...]:
    folder = ("--dataset", "imagefolder", "--img_type", "jpg", "--data_dir", str(tree))
    return (*DATA, *folder, "--num_workers", str(workers))


@pytest.mark.exhaustive
@pytest.mark.full
def test_all_stages_by_workers_and_the_first_without(tree: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    done = run_cli(SCRIPTS["sp"], *_data(tree, 2), *OWN["sp"], *SMOOTH, "--result_dir", results, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name, more in (("prune", SMOOTH), ("rl", ())):
        later = stage(name, *more, "--result_dir", results, data=_data(tree, 2))
        assert later.returncode == 0, later.stderr
    alone = stage("sp", *SMOOTH, "--result_dir", results, "--exp_name", "alone", data=_data(tree))
    assert alone.returncode == 0, alone.stderr
    helped, unhelped = (folder_of(results, "sp", name, dataset=tree.name) for name in ("default", "alone"))
    assert weights(helped) == weights(unhelped)

    run = folder_of(results, "rl", dataset=tree.name)
    spec, result = (json.loads((run / name).read_text()) for name in ("spec.json", "result.json"))
    assert spec["centre_crop"] is True and spec["mean"] == [0.485, 0.456, 0.406] and spec["input_size"] == 32
    assert result["test"]["images"] == CLASSES * VAL
    shown = run_here("hybridprune.evaluate", run, "--device", "cpu")
    assert shown.returncode == 0 and f"accuracy {result['test']['routed']['accuracy']:.4f}" in shown.stdout

    files = sorted(tree.glob("val/*/*"))
    predictions = hybridprune.predict(hybridprune.load(run), files)
    right = sum(p.label == file.parent.name for p, file in zip(predictions, files, strict=True))
    assert right / len(files) == pytest.approx(result["test"]["routed"]["accuracy"], abs=1e-9)


def test_a_broken_image_is_named_and_a_repaired_one_goes_on(tree: Path, tmp_path: Path) -> None:
    own = tmp_path / "photos"
    for file in tree.glob("*/*/*"):
        copy = own / file.relative_to(tree)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    common = ("--result_dir", tmp_path / "results", "--epochs", "1")
    assert stage("sp", *common, "--exp_name", "whole", data=_data(own)).returncode == 0
    whole = folder_of(tmp_path / "results", "sp", "whole", dataset="photos")
    validation = json.loads((whole / "split.json").read_text())["validation"]
    broken = sorted((own / "train").glob("*/*"))[next(n for n in range(1, CLASSES * TRAIN) if n not in validation)]
    sound = broken.read_bytes()
    broken.write_bytes(sound[:100])
    refused = stage("sp", *common, data=_data(own))
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    last = refused.stderr.splitlines()[-1]
    assert last.startswith(f"error: {broken}: cannot be decoded") and "the state is saved" in last
    broken.write_bytes(sound)
    done = stage("sp", *common, "--resume", data=_data(own))
    assert done.returncode == 0, done.stderr
    assert weights(folder_of(tmp_path / "results", "sp", dataset="photos")) == weights(whole)


def test_a_run_is_not_resumed_on_other_images(tree: Path, tmp_path: Path) -> None:
    common = ("--result_dir", tmp_path / "results", "--epochs", "1")
    assert stage("sp", *common, data=_data(tree)).returncode == 0
    run = folder_of(tmp_path / "results", "sp", dataset=tree.name)
    spec = json.loads((run / "spec.json").read_text())
    (run / "spec.json").write_text(json.dumps({**spec, "dataset_digest": "other"}))
    (run / "result.json").unlink()
    assert_refused(stage("sp", *common, "--resume", data=_data(tree)), "--resume", "other images")


def test_published_weights_of_torchvision(tree: Path, tmp_path: Path) -> None:
    from torchvision.models import shufflenet_v2_x0_5

    torch.save(shufflenet_v2_x0_5(num_classes=10).state_dict(), tmp_path / "net.pth")
    done = stage(
        "sp", "--network", "torchvision:shufflenet_v2_x0_5", "--weights", tmp_path / "net.pth", "--dry-run",
        data=_data(tree),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "is for 10 classes, not 4" in done.stderr and "fc.weight, fc.bias" in done.stderr


@pytest.mark.full
def test_torchvisions_resnet_with_gates_in_all_stages(tree: Path, tmp_path: Path) -> None:
    from torchvision.models import resnet18

    published = resnet18(num_classes=CLASSES)
    torch.save(published.state_dict(), tmp_path / "net.pth")
    results = tmp_path / "results"
    data = (*_data(tree), "--network", "resnet18-gated", "--result_dir", str(results))
    for name, more in {
        "sp": ("--epochs", "0", "--weights", tmp_path / "net.pth"),
        "prune": ("--method", "l1", "--epochs_start", "0", "--epochs_end", "0"),
        "rl": ("--epochs", "1", "--target_flops", "0.45", "--estimator", "gumbel"),
    }.items():
        done = stage(name, *more, data=data)
        assert done.returncode == 0, done.stderr
    first, last = (results / "default" / f"{tree.name}-resnet18-gated-{name}-seed0" for name in ("sp", "rl"))
    taken = load_file(first / "model.safetensors")["backbone.blocks.2.projection.0.weight"]
    assert torch.equal(taken, published.get_parameter("layer2.0.downsample.0.weight"))
    result = json.loads((last / "result.json").read_text())
    assert len(rates := result["test"]["routed"]["block_rates"]) == 7 and min(rates) < 1
    shown = run_here("hybridprune.evaluate", last, "--mode", "executed", "--device", "cpu")
    differ = re.search(r"executed against masked: logits differ by (\S+) ", shown.stdout)
    assert differ is not None and float(differ[1]) < 1e-5, shown.stdout + shown.stderr
