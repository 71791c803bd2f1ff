"""Submissions of made-up predictions, and boards to put them on."""

from __future__ import annotations

import pytest

from avbench.evaluation.score import score
from avbench.leaderboard import evidence
from avbench.leaderboard.board import Board
from avbench.leaderboard.entry import Submission
from avbench.leaderboard.submit import Candidate
from avbench.manifests.benchmark import Benchmark
from tests.helpers.predictions import predictions


@pytest.fixture(scope="session")
def toy():
    return Benchmark.load("toy-ci")


@pytest.fixture
def about(toy):
    """What is said about an entry."""

    def make(**changes):
        said = {
            "name": "mine",
            "method": "Mine",
            "authors": ("A. Author",),
            "url": "https://example.org/mine",
            "benchmark": "toy-ci",
            "fingerprint": toy.manifest.fingerprint,
            "modality": "audio-visual",
            "access": "incremental",
            "exemplars": 60,
            "pretraining": "none",
            "preset": "filterbank",
            "preset_hash": "ab" * 32,
            "coverage": 1.0,
        }
        return Submission(**said | changes)

    return make


@pytest.fixture
def candidate(toy, about):
    """A submission with predictions."""

    def make(*, seeds=(0, 1, 2), skill=0.7, rng=0, **changes):
        measured = score(predictions(toy, seeds=seeds, skill=skill, rng=rng), toy)
        return Candidate.of(about(**changes), measured, evidence.to_bytes(measured))

    return make


@pytest.fixture
def boards(tmp_path):
    folder = tmp_path / "leaderboards"
    folder.mkdir()
    Board(benchmark="toy-ci").write(folder / "toy-ci.json")
    return folder
