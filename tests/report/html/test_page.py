from __future__ import annotations

import base64
import itertools
import json
import shutil
from pathlib import Path

import pytest

from hybridprune.report import collect
from hybridprune.report.formats import table
from hybridprune.report.html import Options, render_page
from tests.report.html.pages import Page, cascade_run, routed_run
from tests.report.run_folders import result, write, write_lineage

HOSTILE = """<img src=x onerror="alert('1')">&{{ 7 * 7 }}"""
SECTIONS = ("Table", "resnet32-w16 on tree", "Provenance")


def page_of(folder: Path, options: Options | None = None) -> Page:
    return Page(render_page(folder, collect(folder), options or Options()))


def assert_self_contained(page: Page) -> None:
    """No script, no handler, and no address but fragments and embedded data."""
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        for name in ("src", "href", "srcset", "xlink:href", "action"):
            assert attributes.get(name, "#").startswith(("#", "data:")), (tag, attributes)
    (style,) = [text for text in page.texts if "color-scheme" in text]
    assert "url(" not in style and "@import" not in style
    (policy,) = [e["content"] for e in page.all("meta") if e.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:")


def test_the_table_is_the_reports(tmp_path: Path) -> None:
    write_lineage(tmp_path, seeds=(0, 1, 2), accuracy=(0.70, 0.71, 0.69))
    page, made = page_of(tmp_path), table(collect(tmp_path))
    assert_self_contained(page)
    for text in (*made.head, made.note, *SECTIONS, *(cell for cells in made.body for cell in cells)):
        assert " ".join(text.split()) in page.text, text
    assert "9 finished runs in 3 rows" in page.text
    assert "-5.00 points against its dense network" in page.text  # 0.70 of 0.75
    assert "50.0% of the dense FLOPs" in page.text


def test_headings_descend_one_by_one_and_images_say_what_they_show(tmp_path: Path, image_tree: Path) -> None:
    write_lineage(tmp_path / "runs")
    routed_run(tmp_path / "runs" / "routed", image_tree)
    page = page_of(tmp_path / "runs", Options(images=2))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    images = page.all("img")
    assert len(images) == 4 and all("gated blocks executed" in image["alt"] for image in images)
    drawings = [e for e in page.all("svg") if e.get("aria-hidden") != "true"]
    assert len(drawings) >= 3 and all(e["role"] == "img" and e["aria-label"] for e in drawings)
    names = [e["id"] for _, e in page.elements if "id" in e]
    assert len(names) == len(set(names))
    linked = {e["href"][1:] for e in page.all("a")} | {
        e["aria-labelledby"] for _, e in page.elements if "aria-labelledby" in e
    }
    assert linked <= set(names)


def test_hostile_names_are_texts(tmp_path: Path, image_tree: Path) -> None:
    tree = tmp_path / "tree" / HOSTILE.replace("/", "")
    for split in ("train", "test"):
        for source in sorted((image_tree / split).iterdir()):
            shutil.copytree(source, tree / split / f"{HOSTILE} {source.name}")
    root = tmp_path / HOSTILE
    run = routed_run(root / HOSTILE / "run", tree)
    record = run.read_json("result.json")
    for path, value in (("exp_name", HOSTILE), ("config", {HOSTILE: HOSTILE}), ("versions", {HOSTILE: HOSTILE})):
        record[path] = value
    record["network"]["label"] = record["dataset"]["name"] = record["parent"] = HOSTILE
    record["parent"] = {"path": HOSTILE, "run_id": HOSTILE, "model_sha256": HOSTILE}
    (run.path / "result.json").write_text(json.dumps(record))
    row = {"network": HOSTILE, "form": HOSTILE, "median_ms": 1, "images_per_second": 1}
    bench = {"batch": 1, "device": HOSTILE, "rows": [row | {"predicted_speedup": None, "realised_speedup": None}]}
    (run.path / "bench.json").write_text(json.dumps(bench))
    page = page_of(root)
    assert_self_contained(page)
    assert page.text.count(HOSTILE) > 20
    images = page.all("img")
    assert images and all(
        image["src"].startswith("data:image/png;base64,") and HOSTILE in image["alt"] for image in images
    )
    assert base64.b64decode(images[0]["src"].partition(",")[2])[1:4] == b"PNG"


def test_what_is_missing_is_said(tmp_path: Path, image_tree: Path) -> None:
    write(tmp_path / "bare", result("prune", "p", group="x"))
    assert "The layers cannot be shown: " in page_of(tmp_path).text
    text = page_of(tmp_path).text
    assert "No gallery: the network or its images could not be read" in text and "spec.json" in text
    tree = Path(shutil.copytree(image_tree, tmp_path / "tree"))
    routed_run(tmp_path / "routed", tree)
    assert "No gallery was asked for" in page_of(tmp_path / "routed", Options(images=0)).text
    shutil.rmtree(tree)
    assert "No gallery: the network or its images could not be read (--data_dir" in page_of(tmp_path / "routed").text
    moved = page_of(tmp_path / "routed", Options(data_dir=str(image_tree)))
    assert len(moved.all("img")) == 30 and "No gallery" not in moved.text


def test_gates_that_decide_alike_for_all_have_no_gallery(tmp_path: Path, image_tree: Path) -> None:
    routed_run(tmp_path / "routed", image_tree, gated=False)
    page = page_of(tmp_path / "routed")
    assert "the gates treat all test images alike" in page.text and page.all("img") == []


def test_a_cascade_shows_who_goes_on(tmp_path: Path, image_tree: Path) -> None:
    cascade_run(tmp_path / "cascade", image_tree)
    page = page_of(tmp_path / "cascade", Options(images=2))
    assert_self_contained(page)
    for words in (
        "Which images go on",
        "Run member 3",
        "All 3 classes as a table",
        "Execution rates of the members",
        "Images that stop and images that go on",
        "Stop at member 1",
        "Members executed: 1 for",
        "chance alone would make it",
        "members are runs of their own",
    ):
        assert words in page.text, words
    assert "block" not in page.text.split("Execution rates")[1].split("Provenance")[0]
    images = page.all("img")
    assert len(images) == 4
    assert all("of 3 members executed; margin" in image["alt"] for image in images)
    assert images[0]["alt"].count("1 of 3") == 1 and "3 of 3" in images[2]["alt"]
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4", "h5", "h6")]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    cells = [text.strip() for text in page.texts]
    assert cells.count("10") >= 3  # images of each class
    assert "go on" not in page_of(tmp_path / "cascade", Options(images=0)).text


def test_curves_of_both_kinds_of_routing_are_in_one_plot(tmp_path: Path) -> None:
    write_lineage(tmp_path)
    named = {"name": "cascade", "label": "cascade-a-b"}
    write(tmp_path / "cascade", result("rl", "c0", "p0", group="c", network=named))
    assert "Operating points" not in page_of(tmp_path).text
    points = [{"flops": 4e7 * k, "accuracy": 0.2 * k} for k in (1, 2, 3)]
    swept = [tmp_path / "a" / "rl-0", tmp_path / "cascade"]
    for folder in swept:
        (folder / "sweep.json").write_text(json.dumps(points))
    page = page_of(tmp_path)
    (label,) = [e["aria-label"] for e in page.all("svg") if "of each policy" in e.get("aria-label", "")]
    assert label.startswith("Validation accuracy") and "static + dynamic from 20% at 0.04 to 60% at 0.12" in label
    assert "static + dynamic, cascade from" in label and "on the validation images" in page.text
    tested = [{**point, "test_flops": point["flops"], "test_accuracy": 0.9} for point in points]
    (swept[0] / "sweep.json").write_text(json.dumps(tested))
    assert "on the validation images" in page_of(tmp_path).text  # the other one is not of test images
    (swept[1] / "sweep.json").write_text(json.dumps(tested))
    page = page_of(tmp_path)
    (label,) = [e["aria-label"] for e in page.all("svg") if "of each policy" in e.get("aria-label", "")]
    assert label.startswith("Test accuracy") and "from 90% at 0.04" in label and "on the test images" in page.text
    (swept[1] / "sweep.json").write_text("[]")
    page = page_of(tmp_path)
    assert "sweep.json: holds no points; run hybridprune curve again" in page.text and "gates at blocks" in page.text


def test_latencies_are_columns_and_plots(tmp_path: Path) -> None:
    write_lineage(tmp_path)
    rows = [
        {"network": name, "form": form, "median_ms": ms, "images_per_second": 32000 / ms, "predicted_speedup": 2.5,
         "realised_speedup": 10 / ms}
        for form in ("eager", "onnx")
        for name, ms in (
            ("dense", 10.0), ("sp", 9.0), ("prune", 6.0), ("rl", 5.0), ("deployed", 4.0), ("unheard-of", 3.0)
        )
    ]  # fmt: skip
    (tmp_path / "a" / "rl-0" / "bench.json").write_text(json.dumps({"batch": 32, "device": "gpu x", "rows": rows}))
    page = page_of(tmp_path)
    assert "Measured speed" in page.text and "unheard-of" in page.text
    assert "eager, batch 32, gpu x" in page.text and "onnx, batch 32, gpu x" in page.text
    (label, _) = [e["aria-label"] for e in page.all("svg") if "median ms" in e.get("aria-label", "")]
    for words in ("without pruning 75% at 10", "static only 70% at 6", "static + dynamic 59.5% at 5"):
        assert words in label
    assert "static + dynamic, deployed 59.5% at 4" in label and "at 3" not in label
    assert "2.50" in page.text and "1.00" in page.text  # realised 10 / 4, and over predicted
    (tmp_path / "a" / "rl-0" / "bench.json").write_text("{")
    with pytest.warns(UserWarning, match=r"not counted: .*bench\.json"):
        page_of(tmp_path)


def test_many_rows_have_no_cards_and_each_family_its_own_plot(tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / str(number), result("sp", f"s{number}", group=f"g{number}"))
    write(tmp_path / "other", result("sp", "o", group="o", network__label="resnet110-w16"))
    page = page_of(tmp_path)
    assert len([1 for _, e in page.elements if e.get("class", "").startswith("card ")]) == 1
    assert len([e for e in page.all("svg") if "GFLOPs" in e.get("aria-label", "")]) == 2
