"""Reports: the numbers of the runs, honest about ties, and pages that are whole in themselves."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from avbench.evaluation import predictions
from avbench.evaluation.compare import compare
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.report import latex, report, step_confusion
from avbench.evaluation.result import Result
from avbench.types import AvbenchError, UsageError

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
QUICK = {"epochs": "8", "batch_size": "8", "learning_rate": "0.005"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Where the runs of this module lie, made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def runs(tiny, with_features, made):
    """Three finished runs of a tiny benchmark: a bound, and two methods that compete."""
    names = ("oracle", "finetune", "avcil")
    if not (made / "avcil" / "result.json").is_file():
        benchmark = tiny()
        with_features(benchmark)
        for name in names:
            evaluate(benchmark, name, seeds=[0, 1, 2], out=made / name, settings=QUICK)
    return [made / name for name in names]


def copied(run: Path, to: Path, **config) -> Path:
    """Copy a run, with changes to the configuration its result claims."""
    shutil.copytree(run, to)
    record = json.loads((to / "result.json").read_text())
    record["config"] |= config
    (to / "result.json").write_text(json.dumps(record))
    return to


def table(rows) -> pa.Table:
    columns = zip(*rows, strict=True)
    return pa.table(dict(zip(predictions.SCHEMA.names, columns, strict=True))).cast(
        predictions.SCHEMA
    )


def test_confusion_between_steps_by_hand():
    # Two steps: classes 0 and 1, then 2. After the last, a clip of class 1 is taken for 2.
    first = [(0, "a", 0, 1), (0, "b", 1, 1)]
    last = [(1, "a", 0, 1), (1, "b", 1, 2), (1, "c", 2, 2), (1, "d", 2, 0)]
    assert step_confusion(table(first + last)).tolist() == [[1, 1], [1, 1]]
    assert step_confusion(table([(0, "a", 0, 0)])).tolist() == [[1]]


@pytest.mark.parametrize(("before", "after"), [((0, 1), 3), ((1, 1), 2)])
def test_where_a_step_begins_is_not_guessed(before, after):
    first = [(0, clip, label, 0) for clip, label in zip("ab", before, strict=True)]
    last = [(1, clip, label, 0) for _, clip, label, _ in first]
    assert step_confusion(table([*first, *last, (1, "c", after, 0)])) is None


def test_every_number_is_of_the_runs(runs, tmp_path):
    (group,) = report(runs, tmp_path / "report")
    rows = {row.result.name: row for row in group.rows}
    assert [row.result.metric("mean_accuracy").mean for row in group.rows] == sorted(
        (Result.read(run / "result.json").metric("mean_accuracy").mean for run in runs),
        reverse=True,
    )
    assert rows["oracle"].standing == "bound"
    assert rows["oracle"].cells()[0] == "oracle (joint access)"
    assert rows["oracle"].forgetting() is None
    verdict = compare(runs[2], runs[1]).differences["mean_accuracy"].better
    loser = rows["finetune"] if rows["avcil"].standing == "best" else rows["avcil"]
    assert loser.standing == ("tie with the best" if verdict == "tie" else "below the best")
    for row, run in ((rows["finetune"], runs[1]), (rows["avcil"], runs[2])):
        expected = []
        for seed in range(3):
            frame = predictions.read(run / f"seed-{seed}" / "predictions.parquet").to_pandas()
            frame = frame[frame["step"] == 2]
            counts = np.zeros((3, 3))
            for label, prediction in zip(frame["label"], frame["prediction"], strict=True):
                counts[label // 2, prediction // 2] += 1
            expected.append(counts / counts.sum(axis=1, keepdims=True))
        assert row.confusion == pytest.approx(np.mean(expected, axis=0))
    markdown = (tmp_path / "report" / "report.md").read_text()
    html = (tmp_path / "report" / "report.html").read_text()
    for run in runs:
        summary = Result.read(run / "result.json").metric("mean_accuracy")
        low, high = summary.interval
        for page in (markdown, html):
            assert f"{100 * summary.mean:.2f} ± {100 * summary.std:.2f}" in page
            assert f"{100 * low:.2f} to {100 * high:.2f}" in page
    assert re.findall(r"!\[.*\]\((.*)\)", markdown)
    for target in re.findall(r"!\[.*\]\((.*)\)", markdown):
        assert (tmp_path / "report" / target).is_file()
    header, rule, *body = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(body) == 3
    assert {line.count("|") for line in (header, rule, *body)} == {12}


def test_features_of_other_values_share_a_table_with_a_warning(runs, tmp_path):
    (group,) = report(runs, tmp_path / "same")
    values = group.rows[0].result.features_hash[:12]
    assert group.facts.endswith(f", values of the features {values}")
    other = copied(runs[2], tmp_path / "other", features_hash="f" * 64)
    (group,) = report([*runs[:2], other], tmp_path / "report")
    assert {values, "f" * 12} <= set(group.facts.split())
    assert [row.to_json()["features_hash"] for row in group.rows].count("f" * 64) == 1
    for page in ("report.md", "report.html"):
        text = (tmp_path / "report" / page).read_text()
        assert "The features differ in their values" in text
        assert f"avcil {'f' * 12}" in text
        assert "differ in their values" not in (tmp_path / "same" / page).read_text()


def test_the_same_runs_make_the_same_bytes(runs, tmp_path):
    def digests(folder):
        report(runs, folder)
        return {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.rglob("*")
            if path.is_file()
        }

    first = digests(tmp_path / "a")
    assert first == digests(tmp_path / "b")
    names = {path.name for path in first}
    assert {"report.md", "report.html", "table.tex", "accuracy.png", "accuracy.svg"} <= names
    assert {"forgetting.svg", "cost.svg", "matrix-1-oracle.png"} <= names
    assert sum(name.startswith("confusion-") for name in names) == 6


def test_one_seed_is_said_and_seeds_may_differ(runs, tmp_path):
    one, bound = (copied(run, tmp_path / run.name) for run in (runs[1], runs[0]))
    for run in (bound, one):
        record = json.loads((run / "result.json").read_text())
        (run / "result.json").write_text(json.dumps(record | {"runs": record["runs"][:1]}))
    (group,) = report([runs[2], one, bound], tmp_path / "report")
    standings = {row.label.split()[0]: row.standing for row in group.rows}
    assert standings["finetune"].endswith("(one seed)")
    assert "one seed" not in standings["avcil"]
    assert standings["oracle"] == "bound"
    assert "says nothing of other seeds" in (tmp_path / "report" / "report.md").read_text()
    other = copied(runs[1], tmp_path / "other")
    for run in record["runs"]:
        run["seed"] += 5
        (other / f"seed-{run['seed'] - 5}").rename(other / f"seed-{run['seed']}")
    (other / "result.json").write_text(json.dumps(record))
    (group,) = report([runs[2], other], tmp_path / "report")
    assert group.rows[1].standing in ("tie with the best", "below the best")


def test_what_is_not_comparable_is_not_in_one_table(runs, tmp_path, avbench):
    other = copied(runs[1], tmp_path / "other", fingerprint="f" * 64)
    partial = copied(runs[1], tmp_path / "partial")
    record = json.loads((partial / "result.json").read_text())
    coverage = {"train": 1.0, "val": 1.0, "test": 0.75}
    (partial / "result.json").write_text(json.dumps(record | {"coverage": coverage}))
    text = avbench("report", str(runs[1]), str(partial), "--out", "report").stdout
    assert "each group has a table of its own" in text
    assert "PARTIAL: 100.00 % (train), 100.00 % (val), 75.00 % (test) of the clips" in text
    rows = (tmp_path / "report" / "table.tex").read_text().splitlines()
    assert sum(row.startswith("% partial") for row in rows) == 1
    assert sum(" (partial) & " in row for row in rows) == 1
    drawn = list((tmp_path / "report" / "figures").glob("2-*.svg"))
    assert {path.name.split("-")[1] for path in drawn} >= {"accuracy.svg", "cost.svg", "matrix"}
    for path in drawn:
        assert "(partial)" in path.read_text(), path
        whole = path.with_name(path.name.replace("2-", "1-", 1))
        assert "(partial)" not in whole.read_text()
    names = [str(run) for run in (*runs[:2], other)]
    groups = json.loads(avbench("report", *names, "--out", "report", "--json").stdout)["groups"]
    assert [len(group["runs"]) for group in groups] == [2, 1]
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert "they differ in fingerprint." in markdown
    assert "Partial" not in markdown
    assert (tmp_path / "report" / "figures" / "2-accuracy.svg").is_file()


def test_two_runs_of_one_name_are_told_apart(runs, tmp_path):
    again = copied(runs[1], tmp_path / "again")
    (group,) = report([runs[1], again], tmp_path / "report")
    assert {row.label for row in group.rows} == {f"finetune ({run})" for run in (runs[1], again)}
    assert group.rows[1].standing == "tie with the best"


def test_bad_input_is_one_line(runs, tmp_path, avbench):
    run = str(runs[1])
    for arguments, code, message in (
        (["nowhere"], 1, "not a finished run"),
        ([run, run], 2, "given twice"),
        ([], 2, "Missing argument"),
        ([run, "--out", f"{run}/result.json"], 1, "cannot write"),
    ):
        (line,) = avbench("report", *arguments, expect=code).stderr.splitlines()
        assert message in line
    lying = copied(runs[1], tmp_path / "lying")
    record = json.loads((lying / "result.json").read_text())
    record["runs"][0]["correct"][0][0] -= 1
    (lying / "result.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="is not what it predicted"):
        report([lying], tmp_path / "report")
    assert not (tmp_path / "report").exists()
    with pytest.raises(UsageError):
        report([], tmp_path / "report")


EVIL = "<script>fetch('https://example.org')</script>|$x_1$ & 100 % \\ #{}~^\n![x](https://e.org/p)"


def test_names_are_text_wherever_they_stand(runs, tmp_path):
    evil = copied(runs[1], tmp_path / "evil", method=EVIL)
    (group,) = report([evil, runs[0]], tmp_path / "report")
    html = (tmp_path / "report" / "report.html").read_text()
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert r"\<script\>" in markdown
    assert r"\!\[x\]" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows} == {12}
    line = next(line for line in latex(group).splitlines() if "script" in line)
    assert r"|\$x\_1\$ \& 100 \% \textbackslash{} \#\{\}\textasciitilde{}\textasciicircum{}" in line
    assert len(re.findall(r"(?<!\\)&", line)) == 2


def test_a_browser_shows_the_page_and_asks_nobody(runs, tmp_path):
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: install chromium to test pages in a browser")
    from playwright.sync_api import sync_playwright

    evil = copied(runs[1], tmp_path / "evil", method=EVIL)
    report([*runs, evil], tmp_path / "report")
    page_path = tmp_path / "alone" / "page.html"  # away from the figures
    page_path.parent.mkdir()
    shutil.copy(tmp_path / "report" / "report.html", page_path)
    said, asked = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(page_path.as_uri())
        page.wait_for_load_state("networkidle")
        sizes = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
        rows = page.locator("tbody tr").all_inner_texts()
        fits = page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        browser.close()
    assert said == []
    assert [url for url in asked if not url.startswith("data:")] == [page_path.as_uri()]
    assert len(sizes) == 3 + 2 * 4
    assert all(size > 0 for size in sizes)
    assert fits
    assert len(rows) == 4
    assert sum("oracle (joint access)" in row for row in rows) == 1
    assert sum("<script>fetch" in row for row in rows) == 1
