"""The page in a real browser, from a file, without a network."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest

from avbench import resources
from avbench.leaderboard.board import Board, evidence_path
from avbench.leaderboard.entry import Reported, Verified
from avbench.leaderboard.render import render

pytestmark = pytest.mark.slow

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = (
    "www.a.org <img src=x onerror=alert(1)></script><script>alert(2)</script>{{DATA}}|`*_[x](y)"
)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no {CHROMIUM}: apt install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        yield playwright.chromium.launch(executable_path=str(CHROMIUM), args=arguments)


@pytest.fixture
def opened(browser, tmp_path):
    """Open the page of some boards, and fail on anything the console says."""
    said = []
    contexts = []

    def open_page(boards, *, width=1280, fragment="", **options):
        path = tmp_path / "index.html"
        path.write_text(render(boards)["index.html"], encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append("dialog"), dialog.dismiss()))
        page.goto(f"file://{path}{fragment}")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert said == []


def put(boards, data, *entries):
    """Put entries on a board that all predict the same."""
    Board(benchmark="toy-ci", entries=entries).write(boards / "toy-ci.json")
    (boards / "predictions" / "toy-ci").mkdir(parents=True)
    for entry in entries:
        if isinstance(entry, Verified):
            evidence_path(boards, "toy-ci", entry.name).write_bytes(data)


def names(page):
    return page.locator("#board tbody tr td:nth-child(3)").all_inner_texts()


@pytest.fixture
def shipped():
    return resources.shipped("leaderboards")


def test_sort_filter_select_and_open_a_matrix(opened, shipped):
    page = opened(shipped, fragment="#toy-ci")
    assert page.locator("[role=tab][aria-selected=true]").inner_text() == "toy-ci"
    first = names(page)
    ranks = page.locator("#board tbody tr td:nth-child(2)").all_inner_texts()
    assert ranks[:2] == ["1=", "1="]
    assert ranks[first.index("oracle")] == "\N{EN DASH}"
    page.get_by_role("button", name="Forgetting").click()
    header = page.locator("th", has=page.get_by_role("button", name="Forgetting"))
    assert header.get_attribute("aria-sort") == "descending"
    by_forgetting = {
        e.name: e.average_forgetting for e in Board.read(shipped / "toy-ci.json").entries
    }
    known = sorted((n for n in first if n != "oracle"), key=lambda n: -by_forgetting[n])
    assert names(page) == [*known, "oracle"]
    page.get_by_role("button", name="Forgetting").click()
    assert names(page) == [*known[::-1], "oracle"]  # what is not known stays last

    page.get_by_role("searchbox").fill("icarl FC")
    assert names(page) == ["icarl-fc"]
    assert page.locator("#count").inner_text() == "1 of 9 entries"
    page.get_by_label("plot icarl-fc").check()
    page.get_by_role("searchbox").fill("")
    page.get_by_label("plot avcil").check()
    assert page.locator("#plot polyline").count() == 2
    assert page.locator("#legend").inner_text().split() == ["icarl-fc", "avcil"]
    entry = next(e for e in Board.read(shipped / "toy-ci.json").entries if e.name == "avcil")
    label = page.get_by_role("img").get_attribute("aria-label")
    assert f"avcil {entry.accuracy_per_step[0]:.1f} " in label

    page.get_by_role("button", name="accuracy matrix of avcil").click()
    cells = page.locator("dialog[open] td").all_inner_texts()
    assert cells == [f"{value:.2f}" for row in entry.accuracy_matrix for value in row]
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0
    page.get_by_label("plot avcil").uncheck()
    assert page.locator("#plot polyline").count() == 1

    page.get_by_role("tab", name="ave-ci").click()
    assert page.locator("#curves").is_hidden()
    page.get_by_label("verified only").check()
    assert names(page) == []
    page.get_by_label("verified only").uncheck()
    page.locator("#modality").select_option("audio")
    assert set(page.locator("#board tbody tr td:nth-child(6)").all_inner_texts()) == {"audio"}


def test_by_keyboard_alone(opened, shipped):
    page = opened(shipped)
    page.keyboard.press("Tab")
    tabs = page.get_by_role("tab").all_inner_texts()
    chosen = page.locator("[role=tab][aria-selected=true]")
    assert chosen.inner_text() == tabs[0]
    page.keyboard.press("ArrowRight")
    assert chosen.inner_text() == tabs[1]
    page.keyboard.press("End")
    assert chosen.inner_text() == tabs[-1]
    page.keyboard.press("ArrowRight")
    assert chosen.inner_text() == tabs[0]
    page.get_by_role("button", name="Entry").focus()
    page.keyboard.press("Enter")
    assert names(page) == sorted(names(page))
    assert page.evaluate("document.activeElement.textContent") == "Entry ▴"


def test_controls_have_names_for_screen_readers(opened, shipped):
    page = opened(shipped, fragment="#toy-ci")
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select')].filter(e =>"
        " !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).length"
    )
    assert unnamed == 0
    assert page.locator("table#board caption").inner_text()
    assert page.locator("html").get_attribute("lang") == "en"


def test_narrow_and_dark(opened, shipped):
    page = opened(shipped, width=360, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    light = page.evaluate("getComputedStyle(document.body).color.match(/\\d+/g).map(Number)")
    dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    )
    assert min(light) > 200
    assert max(dark) < 60


def test_markup_in_entries_stays_text(opened, boards, candidate):
    hostile = {"method": HOSTILE, "authors": (HOSTILE,), "pretraining": HOSTILE}
    made = candidate(**hostile, preset="other:x", preset_hash=None)
    reported = Reported(
        name="said",
        method=HOSTILE,
        modality="audio",
        access="incremental",
        source=HOSTILE,
        url="https://example.org/?a=(b)[c]&lt;",
        mean_accuracy=1,
    )
    put(boards, made.data, made.entry, reported)
    page = opened(boards)
    cells = page.locator("#board tbody tr").first.locator("td").all_inner_texts()
    assert cells.count(HOSTILE) == 3
    assert "other:x (no hash)" in cells
    assert page.locator("img, td script").count() == 0
    assert page.locator("#preset option").all_inner_texts() == ["all", "other:x (no hash)"]
    markdown = render(boards)["README.md"]
    assert "<img" not in markdown
    assert "www.a" not in markdown
    assert "*" not in markdown
    assert "`" not in markdown
    row = next(line for line in markdown.splitlines() if "| said |" in line)
    assert row.count("|") == 12
    assert "](https://example.org/?a=%28b%29%5Bc%5D&lt;)" in row


def test_what_was_stored_and_values_of_features_are_shown(opened, boards, candidate):
    made = candidate(
        preset_hash="1" * 64, features_hash="a" * 64, exemplar_bytes=3_140_000, stored_bytes=900_000
    )
    other = made.entry.model_copy(update={"name": "other", "features_hash": "b" * 64})
    put(boards, made.data, made.entry, other)
    markdown = render(boards)["README.md"]
    (line,) = (line for line in markdown.splitlines() if "| mine |" in line)
    assert "| filterbank &#40;11111111&#41; | aaaaaaaa |" in line
    assert "| 60 | 3.1 + 0.9 |" in line
    assert "Warning: filterbank &#40;11111111&#41;&#58; competitors used features" in markdown
    page = opened(boards)
    cells = page.locator("#board tbody tr").first.locator("td").all_inner_texts()
    assert {"aaaaaaaa", "3.1", "0.9"} <= set(cells)
    assert "bbbbbbbb (other)" in page.locator("#warnings").inner_text()


def test_exported_text_is_never_a_formula(opened, boards, candidate, tmp_path):
    formulas = ["=1+1", "+1", "-1", "@SUM(A1)", "|cmd", "%0A", 'a "quoted", text']
    made = candidate()
    entries = [
        made.entry.model_copy(update={"name": f"entry-{i}", "method": formula})
        for i, formula in enumerate(formulas)
    ]
    put(boards, made.data, *entries)
    page = opened(boards)
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "out.csv")
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8") as file:
        rows = {row["Entry"]: row for row in csv.DictReader(file)}
    for i, formula in enumerate(formulas):
        expected = formula if formula.startswith("a") else f"'{formula}"
        assert rows[f"entry-{i}"]["Method"] == expected
        assert float(rows[f"entry-{i}"]["Mean accuracy"]) == entries[i].mean_accuracy


def test_a_long_board_is_filled_to_its_end_whatever_is_typed_meanwhile(opened, boards, candidate):
    made = candidate()
    entries = [made.entry.model_copy(update={"name": f"entry-{i:04d}"}) for i in range(1000)]
    put(boards, made.data, *entries)
    page = opened(boards)
    lines = page.locator("#board tbody tr")
    lines.nth(999).wait_for(state="attached")
    # Within one task of the browser: before the second part of either table is due.
    page.evaluate("""() => {
      const filter = document.getElementById("filter");
      for (const text of ["", "entry-099"]) {
        filter.value = text;
        filter.dispatchEvent(new Event("input"));
      }
    }""")
    # Whatever was due before this has been done after it.
    page.evaluate("() => new Promise(done => setTimeout(done, 0))")
    assert lines.count() == 10
    assert page.locator("#count").inner_text() == "10 of 1000 entries"
    page.locator("#filter").fill("")
    lines.nth(999).wait_for(state="attached")
    assert lines.count() == 1000
