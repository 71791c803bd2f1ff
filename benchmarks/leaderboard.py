"""How long it takes to check a large leaderboard, and to open its page.

    python -m benchmarks.leaderboard [--entries N] [--workers N]

Makes a board of vs100-ci with made-up predictions, five seeds an entry (27,500 rows each), checks
it, and opens its page in Chromium, from the file to the last row in the table.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np

from avbench.evaluation.score import Score
from avbench.evaluation.statistics import Outcomes
from avbench.leaderboard import evidence
from avbench.leaderboard.board import Board, evidence_path
from avbench.leaderboard.check import check
from avbench.leaderboard.entry import Submission, Verified
from avbench.leaderboard.render import render
from avbench.manifests.benchmark import Benchmark
from benchmarks import timing


def fill(boards: Path, entries: int) -> int:
    """Write a board; return the size of an entry's predictions in bytes."""
    benchmark = Benchmark.load("vs100-ci")
    layout = evidence.Layout(benchmark)
    random = np.random.default_rng(0)
    made, size = [], 0
    right = np.broadcast_to(layout.label, layout.predicted.shape)[layout.predicted]
    for number in range(entries):
        hit = random.random((5, len(right))) < 0.4 + 0.4 * number / entries
        values = np.where(hit, right, random.integers(layout.seen, size=hit.shape))
        predicted = np.full((5, *layout.predicted.shape), -1, dtype=np.int16)
        predicted[:, layout.predicted] = values
        outcomes = Outcomes(predicted == layout.label, layout.task)
        fingerprint = benchmark.manifest.fingerprint
        score = Score(benchmark.name, fingerprint, tuple(range(5)), predicted, outcomes)
        submission = Submission(
            name=f"entry-{number:04d}",
            method=f"Method {number}",
            authors=("A. Author",),
            url="https://example.org",
            benchmark=benchmark.name,
            fingerprint=fingerprint,
            modality="audio-visual",
            access="incremental",
            exemplars=1500,
            pretraining="none",
            preset="filterbank",
            preset_hash="ab" * 32,
            coverage=1.0,
        )
        data = evidence.to_bytes(score)
        path = evidence_path(boards, benchmark.name, submission.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        made.append(Verified.of(submission, score, hashlib.sha256(data).hexdigest()))
        size = len(data)
    Board(benchmark=benchmark.name, entries=tuple(made)).write(boards / f"{benchmark.name}.json")
    return size


def open_page(page: Path, entries: int, runs: int = 5) -> list[timing.Sample]:
    """Return the times from asking for the page to its last row being there."""
    from playwright.sync_api import sync_playwright

    samples: list[timing.Sample] = []
    with sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=arguments)
        for _ in range(runs):
            tab = browser.new_page()
            with timing.timed(samples):
                tab.goto(f"file://{page}")
                tab.locator("#board tbody tr").nth(entries - 1).wait_for(state="attached")
            tab.close()
    return samples


def main() -> None:
    """Measure and print a Markdown table."""
    parser = timing.arguments(__doc__, "ten entries")
    parser.add_argument("--entries", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    entries = 10 if given.quick else given.entries
    with tempfile.TemporaryDirectory() as folder:
        boards = Path(folder)
        size = fill(boards, entries)
        checks: list[timing.Sample] = []
        with timing.timed(checks):
            found = check([boards / "vs100-ci.json"], workers=given.workers)
        assert found.problems == ()
        page = boards / "index.html"
        renders: list[timing.Sample] = []
        with timing.timed(renders):
            text = render(boards)["index.html"]
        page.write_text(text, encoding="utf-8")
        row = [
            f"{found.verified:,}",
            f"{size / 1000:.0f}",
            f"{checks[0].wall:.1f}",
            f"{renders[0].wall:.1f}",
            f"{page.stat().st_size / 1000:,.0f}",
            timing.spread([sample.wall for sample in open_page(page, entries)]),
        ]
    header = [
        "entries",
        "predictions of one, kB",
        "check, s",
        "render, s",
        "page, kB",
        "page opens, s",
    ]
    print(timing.table(header, [row]))


if __name__ == "__main__":
    main()
