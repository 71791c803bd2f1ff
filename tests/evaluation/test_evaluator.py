"""Whole runs: evidence on disk, protocol, learning that is real."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file

from avbench import registry, resources
from avbench.evaluation import predictions
from avbench.evaluation.evaluator import evaluate
from avbench.evaluation.result import Result, Summary
from avbench.features.store import hash_clips, hash_preset
from avbench.learning.gradient import GradientMethod
from avbench.learning.stopwatch import PHASES
from avbench.learning.stream import ProtocolError
from avbench.types import AvbenchError, UsageError

QUICK = {"epochs": "20", "batch_size": "8", "learning_rate": "0.005"}


def names(folder):
    """What a user sees in a folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


@pytest.fixture
def benchmark(tiny, with_features):
    made = tiny()
    with_features(made)
    return made


@pytest.mark.slow
def test_a_run_leaves_all_evidence(benchmark, tmp_path):
    out = tmp_path / "run"
    result = evaluate(benchmark, "avcil", seeds=[0, 3], out=out, settings=QUICK)
    assert names(out) == [
        "accuracy.png",
        "config.json",
        "matrix.png",
        "result.json",
        "seed-0",
        "seed-3",
    ]
    assert names(out / "seed-3") == [
        "cost.json",
        "environment.json",
        "exemplars.json",
        "log.jsonl",
        "predictions.parquet",
        "step-1.safetensors",
        "step-2.safetensors",
        "step-3.safetensors",
    ]
    config = json.loads((out / "config.json").read_text())
    assert config["settings"]["epochs"] == 20
    assert config["fingerprint"] == benchmark.manifest.fingerprint
    assert config["memory"] == 12
    exemplars = json.loads((out / "seed-0" / "exemplars.json").read_text())
    for step, kept in enumerate(exemplars):
        assert kept["exemplars"].keys() == {str(c) for c in range(2 * step + 2)}
        assert {len(clips) for clips in kept["exemplars"].values()} == {12 // (2 * step + 2)}
        assert all(
            clip.startswith(f"c{c}-") for c, clips in kept["exemplars"].items() for clip in clips
        )
    record = json.loads((out / "result.json").read_text())
    assert record["coverage"] == {"train": 1.0, "val": 1.0, "test": 1.0}
    assert len(record["metrics"]["mean_accuracy"]["per_seed"]) == 2
    logged = [json.loads(line) for line in (out / "seed-0" / "log.jsonl").read_text().splitlines()]
    assert len(logged) == 3 * 20
    weights = load_file(out / "seed-0" / "step-2.safetensors")
    assert weights["classifier.weight"].shape == (4, 12)
    again = Result.read(out / "result.json")
    assert again.to_json() == result.to_json()


def test_numbers_are_those_of_the_predictions(benchmark, tmp_path):
    result = evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings=QUICK)
    table = pq.read_table(tmp_path / "run" / "seed-0" / "predictions.parquet").to_pandas()
    assert (table["label"] == table["clip_id"].str[1].astype(int)).all()
    accuracy = (table["label"] == table["prediction"]).groupby(table["step"]).mean()
    assert result.metric("mean_accuracy").mean == pytest.approx(accuracy.mean())
    assert table.groupby("step").size().tolist() == [8, 16, 24]


@pytest.mark.slow
def test_another_seed_gives_another_run(benchmark, tmp_path):
    evaluate(benchmark, "finetune", seeds=[0, 1], out=tmp_path / "run", settings=QUICK)
    one, other = (tmp_path / "run" / f"seed-{seed}" / "log.jsonl" for seed in (0, 1))
    assert one.read_bytes() != other.read_bytes()


@pytest.mark.parametrize("modality", ["audio", "visual"])
def test_one_modality_is_enough_to_learn(modality, benchmark, tmp_path):
    result = evaluate(
        benchmark, "oracle", seeds=[0], out=tmp_path / "run", modality=modality, settings=QUICK
    )
    assert result.metric("last_accuracy").mean > 0.5
    assert result.name == f"oracle-{modality}"


@pytest.mark.slow
def test_no_validation_clips(tiny, with_features, tmp_path):
    benchmark = tiny(classes=3, classes_per_step=1, memory=3)
    table = (tmp_path / "tiny.csv").read_text().replace(",val", ",test")
    (tmp_path / "tiny.csv").write_text(table)
    with_features(benchmark)
    for method in ("finetune", "icarl-nme"):
        result = evaluate(benchmark, method, seeds=[0], out=tmp_path / method, settings=QUICK)
        assert np.isfinite(result.metric("mean_accuracy").mean)


@pytest.mark.slow
def test_an_equal_run_is_kept_and_another_is_not_overwritten(benchmark, tmp_path):
    out = tmp_path / "run"
    evaluate(benchmark, "finetune", seeds=[0], out=out, settings=QUICK)
    stamp = (out / "seed-0" / "log.jsonl").stat().st_mtime_ns
    evaluate(benchmark, "finetune", seeds=[0, 1], out=out, settings=QUICK)
    assert (out / "seed-0" / "log.jsonl").stat().st_mtime_ns == stamp
    with pytest.raises(AvbenchError, match="differs in settings: choose another --out"):
        evaluate(benchmark, "finetune", seeds=[0], out=out, settings={"epochs": "1"})
    assert (out / "seed-0" / "log.jsonl").stat().st_mtime_ns == stamp
    forced = evaluate(
        benchmark, "finetune", seeds=[0], out=out, settings={"epochs": "1"}, force=True
    )
    assert forced.config["settings"]["epochs"] == 1
    assert not (out / "seed-1").exists()


@pytest.mark.slow
def test_force_replaces_the_seeds_asked_for_and_no_other(benchmark, tmp_path):
    out = tmp_path / "run"
    evaluate(benchmark, "finetune", seeds=[0, 1], out=out, settings=QUICK)
    stamps = [(out / f"seed-{seed}" / "log.jsonl").stat().st_mtime_ns for seed in (0, 1)]
    evaluate(benchmark, "finetune", seeds=np.array([1]), out=out, settings=QUICK, force=True)
    again = [(out / f"seed-{seed}" / "log.jsonl").stat().st_mtime_ns for seed in (0, 1)]
    assert again[0] == stamps[0]
    assert again[1] > stamps[1]


def test_seeds_of_other_features_are_not_kept(tiny, with_features, tmp_path):
    benchmark, out = tiny(), tmp_path / "run"
    with_features(benchmark)
    evaluate(benchmark, "finetune", seeds=[0], out=out, settings=QUICK)
    with_features(benchmark, noise=0.8)
    with pytest.raises(AvbenchError, match="differs in features_hash"):
        evaluate(benchmark, "finetune", seeds=[0, 1], out=out, settings=QUICK)
    with_features(benchmark, keep=lambda clip_id: not clip_id.endswith("004"))
    with pytest.raises(AvbenchError, match="differs in clips_hash, features_hash"):
        evaluate(benchmark, "finetune", seeds=[0, 1], out=out, settings=QUICK, allow_missing=True)


def test_a_failing_run_leaves_nothing_that_looks_finished(benchmark, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(AvbenchError, match=r"step 1, epoch \d+: try a smaller learning_rate$"):
        evaluate(benchmark, "finetune", seeds=[0], out=out, settings={"learning_rate": "1e30"})
    assert names(out) == ["config.json"]
    # It does not stand in the way of a better one, nor does that one's result outlive a failure.
    evaluate(benchmark, "finetune", seeds=[0], out=out, settings=QUICK)
    bad = {"learning_rate": "1e30"}
    with pytest.raises(AvbenchError, match="try a smaller"):
        evaluate(benchmark, "finetune", seeds=[0], out=out, settings=bad, force=True)
    assert names(out) == ["config.json"]


def test_a_second_run_in_one_directory_is_refused(benchmark, tmp_path):
    with (
        resources.alone(tmp_path / "run", "using this run directory"),
        pytest.raises(AvbenchError, match="another run is using this run directory"),
    ):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings=QUICK)


def test_a_memory_without_places_is_told_before_training(tiny, with_features, tmp_path):
    benchmark = tiny(memory=3)
    with_features(benchmark)
    with pytest.raises(AvbenchError, match="no place for each of 6 classes"):
        evaluate(benchmark, "avcil", seeds=[0], out=tmp_path / "run")
    evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings=QUICK)


def test_a_step_without_test_clips_is_told_before_training(tiny, with_features, tmp_path):
    benchmark = tiny()
    with_features(
        benchmark,
        keep=lambda c: not (c.startswith("c0") or c.startswith("c1")) or c[-1] not in "49",
    )
    with pytest.raises(AvbenchError, match="step 1 of tiny has no test clip"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", allow_missing=True)


def test_a_folder_of_something_else_is_not_touched(benchmark, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("x")
    with pytest.raises(AvbenchError, match="not a run directory"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "a.jpg").read_text() == "x"
    (tmp_path / "photos" / "config.json").write_text('{"model": "x"}')
    with pytest.raises(AvbenchError, match="not a run directory"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "photos", force=True)
    assert (tmp_path / "photos" / "config.json").read_text() == '{"model": "x"}'


@pytest.mark.slow
def test_missing_features_are_told_and_partial_runs_say_so(tiny, with_features, tmp_path):
    benchmark = tiny()
    with pytest.raises(AvbenchError, match=r"run avbench prepare .*tiny\.toml"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "a", settings=QUICK)
    with_features(benchmark, keep=lambda clip_id: not clip_id.endswith("004"))
    with pytest.raises(AvbenchError, match="6 of 120 clips have no features"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "b", settings=QUICK)
    result = evaluate(
        benchmark, "finetune", seeds=[0], out=tmp_path / "c", settings=QUICK, allow_missing=True
    )
    assert result.coverage == {"train": 1.0, "val": 1.0, "test": 0.75}
    assert result.to_json()["runs"][0]["total"] == [6, 6, 6]


def test_features_of_another_manifest_are_refused(tiny, with_features, tmp_path):
    with_features(tiny(per_class=20))
    with pytest.raises(AvbenchError, match="another version of the manifest"):
        evaluate(tiny(per_class=25), "finetune", seeds=[0], out=tmp_path / "run")


def test_features_of_clips_of_another_length_are_refused(benchmark, tmp_path):
    toml = tmp_path / "tiny.toml"
    toml.write_text(toml.read_text().replace("clip_seconds = 1.0", "clip_seconds = 2.0"))
    changed = type(benchmark).load(str(toml))
    with pytest.raises(AvbenchError, match="clips of another length"):
        evaluate(changed, "finetune", seeds=[0], out=tmp_path / "run")


def test_names_that_do_not_exist(benchmark, tmp_path):
    def run(**kwargs):
        evaluate(benchmark, **({"method": "avcil", "seeds": [0], "out": tmp_path / "x"} | kwargs))

    with pytest.raises(UsageError, match="did you mean avcil"):
        run(method="avcill")
    with pytest.raises(UsageError, match="did you mean epochs"):
        run(settings={"epoch": "3"})
    with pytest.raises(UsageError, match="epochs takes a whole number"):
        run(settings={"epochs": "many"})
    with pytest.raises(UsageError, match="batch_size must be at least 1"):
        run(settings={"batch_size": "0"})
    with pytest.raises(UsageError, match="learning_rate must be positive"):
        run(settings={"learning_rate": "nan"})
    with pytest.raises(UsageError, match="avcil does not work on audio input"):
        run(modality="audio")
    with pytest.raises(UsageError, match="at least one"):
        run(seeds=[])
    with pytest.raises(UsageError, match="device 'gpu9'"):
        run(device="gpu9")
    assert not (tmp_path / "x").exists()


class Cheat(GradientMethod):
    """Breaks the protocol in the way asked for."""

    way = ""

    def __init__(self, settings, setup):
        super().__init__(settings, setup)
        self.earlier = None

    def loss(self, batch, task):
        return self.network(batch.audio, batch.visual).logits.sum()

    def learn(self, task):
        if self.way == "reads an earlier step" and self.earlier is not None:
            self.earlier.batch(np.array([0]))
        self.earlier = task.train
        self.seen = task.seen_classes

    def predict(self, clips):
        return {
            "predicts unseen classes": np.full(len(clips), self.seen),
            "predicts too few": np.zeros(1, dtype=int),
            "predicts scores": np.zeros(len(clips)),
        }.get(self.way, np.zeros(len(clips), dtype=int))

    def state(self):
        return {}


@pytest.mark.parametrize(
    "way",
    ["reads an earlier step", "predicts unseen classes", "predicts too few", "predicts scores"],
)
def test_a_cheat_is_stopped(way, benchmark, tmp_path, monkeypatch):
    monkeypatch.setattr(Cheat, "way", way)
    monkeypatch.setattr(registry, "load", lambda group, name: Cheat)
    with pytest.raises(ProtocolError):
        evaluate(benchmark, "cheat", seeds=[0], out=tmp_path / "run")


def test_predictions_that_do_not_fit_are_refused(benchmark, tmp_path):
    evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings={"epochs": "1"})
    path = tmp_path / "run" / "seed-0" / "predictions.parquet"
    good = predictions.read(path)
    for bad, message in (
        (good.slice(1), "all test clips"),
        (good.filter(pc.not_equal(good["clip_id"], "c0-004")), "cover 23 of 24"),
        (good.slice(0, 8), "must cover the steps 0 to 2"),
        (pq.read_table(path).to_pandas().assign(clip_id="x"), "not a test clip"),
        (pq.read_table(path).to_pandas().assign(prediction=5), "only 2 classes"),
    ):
        table = bad if hasattr(bad, "schema") else good.from_pandas(bad, schema=good.schema)
        with pytest.raises(AvbenchError, match=message):
            predictions.matrix(table, benchmark.manifest)
    shutil.copy(tmp_path / "run" / "config.json", path)
    with pytest.raises(AvbenchError, match="not a readable table"):
        predictions.read(path)


def test_the_spread_over_seeds_is_unbiased():
    summary = Summary.of([0.1, 0.2, 0.6])
    assert summary.mean == pytest.approx(0.3)
    assert summary.std == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert np.isnan(Summary.of([0.1]).std)


def test_the_hash_is_of_the_test_clips_used(tiny, with_features, tmp_path):
    benchmark = tiny()
    with_features(benchmark, keep=lambda clip_id: not clip_id.endswith("004"))
    result = evaluate(
        benchmark, "finetune", seeds=[0], out=tmp_path / "run", settings=QUICK, allow_missing=True
    )
    table = pq.read_table(tmp_path / "run" / "seed-0" / "predictions.parquet")
    manifest = benchmark.manifest
    test = [manifest.clip_ids[row] for row in manifest.rows("test")]
    used = [clip for clip in test if clip in set(table["clip_id"].to_pylist())]
    assert len(used) < len(test)
    assert result.test_clips_hash == hash_clips(used)


class Stops(GradientMethod):
    """Learns well until it is told to stop, in the way asked for."""

    at = 1
    calls = 0
    how: BaseException | None = None

    def loss(self, batch, task):
        loss = F.cross_entropy(self.network(batch.audio, batch.visual).logits, batch.labels)
        self.calls = self.calls + 1 if task.step == self.at else 0
        # In the middle of a step, when some of its epochs have been logged.
        if self.calls > 7 and self.how is not None:
            raise self.how
        return loss * float("nan") if task.step == self.at and self.nan else loss

    nan = False


@pytest.fixture
def stops(monkeypatch):
    def set_up(**attributes):
        for name, value in attributes.items():
            monkeypatch.setattr(Stops, name, value)

    monkeypatch.setattr(registry, "load", lambda group, name: Stops)
    return set_up


@pytest.mark.slow
def test_a_killed_run_goes_on_after_its_last_step(benchmark, tmp_path, stops):
    evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "whole", settings=QUICK)
    stops(how=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    assert names(tmp_path / "run") == ["config.json", "unfinished-seed-0"]
    stops(how=None)
    learned = []
    learn = Stops.learn
    stops(learn=lambda self, task: (learned.append(task.step), learn(self, task)))
    evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    assert learned == [1, 2]
    assert names(tmp_path / "run" / "seed-0") == names(tmp_path / "whole" / "seed-0")
    for name in names(tmp_path / "run" / "seed-0"):
        if name not in ("cost.json", "environment.json"):
            one, other = (tmp_path / run / "seed-0" / name for run in ("run", "whole"))
            assert one.read_bytes() == other.read_bytes(), name


def test_an_unfinished_run_of_another_configuration_is_not_taken_up(benchmark, tmp_path, stops):
    stops(how=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    stops(how=None)
    other = QUICK | {"epochs": "1"}
    with pytest.raises(AvbenchError, match="differs in settings"):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=other)
    evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=other, force=True)
    log = (tmp_path / "run" / "seed-0" / "log.jsonl").read_text().splitlines()
    assert len(log) == 3
    assert not list((tmp_path / "run").glob("unfinished-*"))


@pytest.mark.slow
def test_force_begins_an_unfinished_run_anew(benchmark, tmp_path, stops):
    stops(how=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    stops(how=None)
    learned = []
    learn = Stops.learn
    stops(learn=lambda self, task: (learned.append(task.step), learn(self, task)))
    evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK, force=True)
    assert learned == [0, 1, 2]


def test_a_loss_that_is_not_a_number_names_the_last_good_checkpoint(benchmark, tmp_path, stops):
    stops(nan=True)
    checkpoint = tmp_path / "run" / "unfinished-seed-0" / "step-1.safetensors"
    with pytest.raises(
        AvbenchError, match=f"the loss is nan at step 2, epoch 1: .*; .* is {checkpoint}$"
    ):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    assert load_file(checkpoint)["classifier.weight"].shape == (2, 12)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    ],
)
def test_out_of_memory_says_what_to_reduce(error, benchmark, tmp_path, stops):
    stops(how=error)
    message = r"out of memory at step 2: reduce batch_size \(now 8\) with --set; .*step-1"
    with pytest.raises(AvbenchError, match=message):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)
    stops(how=RuntimeError("shapes differ"))
    with pytest.raises(RuntimeError, match="shapes differ"):
        evaluate(benchmark, "stops", seeds=[0], out=tmp_path / "run", settings=QUICK)


@pytest.mark.parametrize("modality", ["audio-visual", "audio", "visual"])
def test_memory_is_a_setting_counted_in_clips_and_bytes(modality, benchmark, tmp_path):
    settings = QUICK | {"epochs": "1", "memory": "9"}
    result = evaluate(
        benchmark, "ssil", seeds=[0], out=tmp_path / "run", settings=settings, modality=modality
    )
    assert result.config["memory"] == 9
    # Half precision: 12 numbers of sound, 8 * 4 tokens of 12 of sight. Sight alone needs but the
    # mean of the tokens, in single precision.
    clip = {"audio-visual": 2 * 12 * 33, "audio": 2 * 12, "visual": 4 * 12}[modality]
    places = [2 * (9 // 2), 4 * (9 // 4), 6 * (9 // 6)]
    expected = [{"clips": count, "bytes": count * clip} for count in places]
    assert result.memory == {0: expected}
    assert Result.read(tmp_path / "run" / "result.json").memory == result.memory
    with pytest.raises(AvbenchError, match="memory = 5 of tiny has no place for each of 6 classes"):
        evaluate(benchmark, "ssil", seeds=[0], out=tmp_path / "x", settings={"memory": "5"})


def test_an_exemplar_chosen_twice_fills_two_places_and_is_stored_once(benchmark, tmp_path):
    settings = QUICK | {"epochs": "1", "memory": "24"}
    result = evaluate(benchmark, "icarl-fc", seeds=[0], out=tmp_path / "run", settings=settings)
    kept = json.loads((tmp_path / "run" / "seed-0" / "exemplars.json").read_text())
    for step, use in zip(kept, result.memory[0], strict=True):
        clips = [clip for clips in step["exemplars"].values() for clip in clips]
        assert use == {"clips": len(clips), "bytes": len(set(clips)) * 2 * 12 * 33}
    assert any(len(set(c)) < len(c) for step in kept for c in step["exemplars"].values())


def test_features_of_another_preset_or_width_are_refused(tiny, with_features, tmp_path):
    benchmark = tiny()
    folder = with_features(benchmark).folder
    shutil.copytree(folder, folder.with_name("other"))
    with pytest.raises(AvbenchError, match="features of preset filterbank, not other"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run", preset="other")
    record = json.loads((folder / "store.json").read_text())
    record["preset"]["dim"] = 768
    record["preset_hash"] = hash_preset(record["preset"])
    (folder / "store.json").write_text(json.dumps(record))
    with pytest.raises(AvbenchError, match="width 12, but its preset has 768"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_class_of_a_file(benchmark, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from reference_methods.finetune import FineTuning\n"
        "class Mine(FineTuning):\n    recipes = None\n"
        "class NoMethod:\n    pass\n"
        "class Loose(Mine):\n    Settings = dict\n"
    )
    result = evaluate(benchmark, f"{path}:Mine", seeds=[0], out=tmp_path / "run", settings=QUICK)
    assert result.config["method"] == result.name == "Mine"
    for name, message in (
        ("Min", "did you mean Mine"),
        ("Loose", "Loose.Settings is no dataclass"),
        ("NoMethod", "NoMethod is no method, it lacks Settings, .*restore"),
    ):
        with pytest.raises(AvbenchError, match=message):
            evaluate(benchmark, f"{path}:{name}", seeds=[0], out=tmp_path / "x")
    with pytest.raises(UsageError, match="no file"):
        evaluate(benchmark, "no.py:Mine", seeds=[0], out=tmp_path / "x")
    path.write_text("import nothing_of_that_name\n")
    with pytest.raises(AvbenchError, match="cannot be imported .*nothing_of_that_name"):
        evaluate(benchmark, f"{path}:Mine", seeds=[0], out=tmp_path / "x")


@pytest.mark.slow
def test_avcil_without_its_parts_is_ssil_to_the_last_bit(benchmark, tmp_path):
    """One algorithm, though the paper has 62.15 and 61.94 for it in Tables 3 and 1."""
    off = {"i_avss": "false", "c_avss": "false", "vad": "false"}
    for name, settings in (("ssil", {}), ("avcil", off), ("avcil", {})):
        out = tmp_path / f"{name}-{len(settings)}"
        evaluate(benchmark, name, seeds=[0], out=out, settings=QUICK | settings)

    def read(run):
        return (tmp_path / run / "seed-0" / "step-3.safetensors").read_bytes()

    assert read("avcil-3") == read("ssil-0")
    assert read("avcil-0") != read("ssil-0")


@pytest.mark.slow
def test_tensorboard_shows_the_log(benchmark, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    evaluate(benchmark, "finetune", seeds=[0], out=out, settings=QUICK, tensorboard=True)
    events = EventAccumulator(str(out / "tensorboard" / "seed-0"))
    events.Reload()
    lines = (out / "seed-0" / "log.jsonl").read_text().splitlines()
    logged = [json.loads(line) for line in lines]
    shown = events.Scalars("loss")
    assert [event.step for event in shown] == list(range(1, 61))
    assert [e.value for e in shown] == pytest.approx([line["loss"] for line in logged])
    monkeypatch.setattr("avbench.evaluation.evaluator.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'avbench\[tensorboard\]'"):
        evaluate(benchmark, "finetune", seeds=[0], out=tmp_path / "x", tensorboard=True)


@pytest.mark.slow
def test_a_profile_says_what_the_time_of_every_step_goes_into(benchmark, tmp_path):
    for way, profile in (("off", False), ("on", True)):
        out = tmp_path / way
        settings = QUICK | {"epochs": "2"}
        result = evaluate(
            benchmark, "icarl-nme", seeds=[0], out=out, settings=settings, profile=profile
        )
    name = "seed-0/step-3.safetensors"
    assert (tmp_path / "on" / name).read_bytes() == (tmp_path / "off" / name).read_bytes()
    costs = json.loads((tmp_path / "on/seed-0/cost.json").read_text())["steps"]
    assert [cost["profile"] for cost in costs] == [c.profile for c in result.runs[0].cost]
    for number, cost in enumerate(costs):
        spent = cost["profile"]
        assert list(spent) == list(PHASES)
        assert sum(spent.values()) <= cost["seconds"]
        # At the first step there is no teacher.
        assert {phase for phase, seconds in spent.items() if seconds == 0} == (
            {"teacher"} if number == 0 else set()
        )
    costs = json.loads((tmp_path / "off/seed-0/cost.json").read_text())["steps"]
    assert {cost["profile"] for cost in costs} == {None}
