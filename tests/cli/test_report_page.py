"""``python -m hybridprune.report --html``: real runs of all stages, the command's mistakes, and a real browser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest

from hybridprune.config import SUBCOMMANDS, PruneConfig, RlConfig, SpConfig, resolve, to_json
from tests.cli.tiny_runs import STAGES, assert_refused, contents, folder_of, run_here
from tests.report.html.pages import Page, routed_run

CONFIGS = {"sp": SpConfig(), "prune": PruneConfig(), "rl": RlConfig()}
CHROMIUM = os.environ.get("HYBRIDPRUNE_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)


def test_all_stages_stand_on_one_page(results: Path, tmp_path: Path) -> None:
    before = contents(results)
    done = run_here("hybridprune.report", results, "--html", tmp_path / "out.html", "--gallery_images", "50")
    assert (done.returncode, done.stdout) == (0, "")
    assert contents(results) == before
    document = (tmp_path / "out.html").read_text()
    page = Page(document)
    records = {name: json.loads((folder_of(results, name) / "result.json").read_text()) for name in STAGES}
    for name, record in records.items():
        assert record["model_sha256"] in page.text and str(folder_of(results, name)) in page.text
    # The cut layers' MACs add up to what the stage counted.
    rows = re.findall(r'<tr><th scope="row" class="l">[^<]+</th><td class="l">[a-z-]+</td>(.*?)</tr>', document)
    macs = [int(re.findall(r">([\d,]+)</td>", row)[-1].replace(",", "")) for row in rows]
    layers = len(macs) // 3
    assert sum(macs[layers : 2 * layers]) == records["prune"]["macs"]["backbone"]
    assert sum(macs[:layers]) == records["prune"]["dense"]["macs"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_commands_shown_have_the_runs_settings(stage: str, results: Path, tmp_path: Path) -> None:
    assert run_here("hybridprune.report", results, "--html", tmp_path / "out.html", "--gallery", "0").returncode == 0
    page = Page((tmp_path / "out.html").read_text())
    (command,) = [text for text in page.texts if text.startswith(f"hybridprune {SUBCOMMANDS[stage]} ")]
    words = shlex.split(command)
    resolved = to_json(resolve(CONFIGS[stage], words[2:], prog="", description="").config)
    stored = json.loads((folder_of(results, stage) / "config.json").read_text())
    parent = {"prune": "sp", "rl": "prune"}.get(stage)
    if parent is not None:
        assert Path(resolved["checkpoint_file"]).name == folder_of(results, parent).name
        stored["checkpoint_file"] = resolved["checkpoint_file"]
    assert resolved == stored


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--html", "missing/out.html"), ("--html missing/out.html",)),
        (("--html", "out.html", "--gallery", "-1"), ("--gallery -1",)),
        (("--html", "out.html", "--gallery_images", "0"), ("--gallery_images 0",)),
        (("--html", "out.html", "--device", "tpu"), ("--device tpu",)),
    ],
)
def test_mistakes_leave_no_page(flags: tuple[str, ...], words: tuple[str, ...], finished: Path, tmp_path: Path) -> None:
    assert_refused(run_here("hybridprune.report", finished, *flags), *words)
    assert list(tmp_path.glob("*.html")) == []


@pytest.mark.full
@pytest.mark.browser
def test_a_browser_shows_the_page_without_errors_requests_or_overflow(
    results: Path, tmp_path: Path, image_tree: Path
) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium: install the package `chromium`, or name it in HYBRIDPRUNE_CHROMIUM")
    routed_run(results / ("a-long-name" * 12), image_tree)
    row = {"form": "eager", "median_ms": 2.0, "images_per_second": 500, "predicted_speedup": 2, "realised_speedup": 1.5}
    bench = {"batch": 1, "device": "cpu", "rows": [row | {"network": name} for name in ("dense", "rl", "deployed")]}
    (folder_of(results, "rl") / "bench.json").write_text(json.dumps(bench))
    out = tmp_path / "out.html"
    assert run_here("hybridprune.report", results, "--html", out).returncode == 0
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for width, scheme in ((1400, "light"), (1400, "dark"), (400, "light")):
            said: list[str] = []
            asked: list[str] = []
            tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            tab.on("console", lambda message, said=said: said.append(message.text))
            tab.on("pageerror", lambda error, said=said: said.append(str(error)))
            tab.on("request", lambda request, asked=asked: asked.append(request.url))
            tab.goto(out.as_uri())
            tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [out.as_uri()]
            assert tab.evaluate("document.documentElement.scrollWidth") == width
            # Nothing but the contents of the boxes that scroll by themselves reaches over the edge.
            beyond = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .skip') &&
                e.getBoundingClientRect().right > innerWidth + 1).map(e => e.tagName)"""
            assert tab.evaluate(beyond) == []
            pictures = "[...document.images].map(i => i.naturalWidth)"
            assert tab.evaluate(pictures) == [16] * 16
            ink, paper = (
                tab.evaluate(f"getComputedStyle(document.body).{name}") for name in ("color", "backgroundColor")
            )
            light, dark = (sum(map(int, re.findall(r"\d+", colour)[:3])) for colour in (paper, ink))
            assert (light - dark > 450) if scheme == "light" else (dark - light > 450)
            tab.close()
        browser.close()
