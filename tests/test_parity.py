"""The comparison with the authors' code, on a set so small that ours stands in for theirs."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "parity.py"
NOTE = "2 epochs, train batch 6, exemplar batch 4, memory 9, lr 1e-3, weight decay 1e-4, tau 0.05"


@pytest.fixture
def parity(tmp_path, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("parity", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "parity", module)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    splits = ["train"] * 8 + ["val"] * 2 + ["test"] * 5
    labels = np.repeat(np.arange(4), len(splits))
    means = rng.standard_normal((4, 16))
    shape = (len(labels), 8, 16)
    np.savez(
        tmp_path / "set.npz",
        audio=(means[labels] + rng.standard_normal((len(labels), 16))).astype(np.float16),
        visual=(means[labels][:, None] + rng.standard_normal(shape)).astype(np.float16),
        vid=np.array([f"clip-{number:03d}" for number in range(len(labels))]),
        label=labels,
        split=np.array(splits * 4),
    )

    def run(theirs, *arguments, note=NOTE, expect=0):
        steps = [{"label": [0, 1]}, {"label": [0, 1, 2, 3]}]
        runs = {
            f"{method}|{modality}|{seed}": {
                "mean_acc": accuracy,
                "avg_forgetting": forgetting,
                "steps": steps,
            }
            for (method, modality), (accuracy, forgetting) in theirs.items()
            for seed in (42, 43)
        }
        (tmp_path / "results.json").write_text(json.dumps({"note": note, "runs": runs}))
        paths = ["--features", "set.npz", "--results", "results.json"]
        monkeypatch.setattr(sys, "argv", ["parity.py", *paths, *arguments])
        assert module.main() == expect
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_agreement_and_disagreement_are_told_a_method(parity):
    methods = [("finetune", "audio"), ("afc-nme", "audio-visual"), ("ssil", "visual")]
    first = parity(dict.fromkeys(methods, (0.0, 0.0)), "--seeds", "2", expect=1)
    lines = [line for line in first.splitlines() if line.startswith(("finetune", "afc", "ssil"))]
    assert len(lines) == 3
    assert all(line.endswith("FAIL") for line in lines)
    ours = {tuple(line.split()[:2]): re.findall(r"-?\d+\.\d+", line) for line in lines}
    # Columns: ours, theirs, difference, allowed; of accuracy, then of forgetting.
    theirs = {key: (float(n[0]) / 100, float(n[4]) / 100) for key, n in ours.items()}
    assert "all 3 agree" in parity(theirs)
    theirs["ssil", "visual"] = (theirs["ssil", "visual"][0], theirs["ssil", "visual"][1] + 0.9)
    out = parity(theirs, "--method", "ssil", "--method", "finetune", expect=1)
    assert "1 of 2 disagree" in out
    assert "ok" in next(line for line in out.splitlines() if line.startswith("finetune"))
    assert "all 1 agree" in parity(theirs, "--modality", "audio")


@pytest.mark.slow
def test_bad_input_is_one_line(parity, tmp_path):
    theirs = {("finetune", "audio"): (0.5, 0.5)}
    with pytest.raises(ValueError, match="no run of such a method"):
        parity(theirs, "--modality", "visual")
    with pytest.raises(ValueError, match="its note lacks memory"):
        parity(theirs, note=NOTE.replace("memory 9, ", ""))
    result = subprocess.run(
        [sys.executable, SCRIPT, "--features", "set.npz", "--results", "results.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert result.stderr == "Error: results.json: its note lacks memory: pass --set\n"
