"""The exemplar memory: bookkeeping of the authors' code, and its limits."""

from __future__ import annotations

import random

import numpy as np
import pytest

from avbench.learning.gradient import shuffled
from avbench.learning.memory import ExemplarMemory, at_random, first
from avbench.manifests.benchmark import Benchmark
from avbench.types import SPLITS

DATASETS = {"AVE": "ave-ci", "kinetics-sounds": "ks-ci", "VGGSound_100": "vs100-ci"}


@pytest.mark.parametrize("script", ["ours", "ssil"])
def test_random_memory_matches_the_authors(golden, script):
    record = golden("memory.json")["random_memory"][script]
    per_step, sizes = record["class_num_per_step"], record["class_sizes"]
    select = at_random(random.Random(record["python_random_seed"]))
    names = record["vid_pattern"]
    memory = ExemplarMemory(record["memory_size"])
    kept: dict[int, str] = {}
    for step in record["trace"]:
        if step["step"] > 0:
            places = memory.make_room(step["step"] * per_step)
            for index in range((step["step"] - 1) * per_step, step["step"] * per_step):
                numbers = range(sum(sizes[:index]), sum(sizes[: index + 1]))
                pattern = names.replace("{class}", str(index))
                kept |= {n: pattern.replace("{i}", str(i)) for i, n in enumerate(numbers)}
                memory.keep(index, select(numbers, places))
        assert [kept[clip] for clip in memory.clips] == step["flat"]
        assert len(memory) == step["total"]


@pytest.mark.parametrize("dataset", DATASETS)
def test_bookkeeping_on_the_official_benchmarks(golden, dataset):
    records = golden("memory.json")["official_splits"]
    assert records.keys() == DATASETS.keys()
    record = records[dataset]
    benchmark = Benchmark.load(DATASETS[dataset])
    manifest = benchmark.manifest
    counts = {split: np.bincount(manifest.step_of_row[manifest.rows(split)]) for split in SPLITS}
    per_step = record["class_num_per_step"]
    assert set(manifest.classes_per_step) == {per_step}
    assert benchmark.spec.memory == record["memory_size"]
    memory = ExemplarMemory(record["memory_size"])
    for number, step in enumerate(record["steps"]):
        if number:
            places = memory.make_room(number * per_step)
            assert places == step["m_per_class"]
            for index in range((number - 1) * per_step, number * per_step):
                rows = manifest.rows("train")
                clips = rows[manifest.class_indices[rows] == index].tolist()
                memory.keep(index, at_random(random.Random(0))(clips, places))
        assert len(memory) == step["exemplars"]
        assert counts["train"][number] == step["train_new"]
        assert counts["train"][: number + 1].sum() == step["train_seen_all"]
        assert counts["val"][: number + 1].sum() == step["val_seen"]
        assert counts["test"][: number + 1].sum() == step["test_seen"]
        for count, size, key in (
            (step["train_new"], 256, "batches_finetune_bs256_drop_last"),
            (step["train_new"] + len(memory), 256, "batches_merged_bs256_drop_last"),
            (len(memory), 128, "exemplar_batches_bs128_drop_last"),
        ):
            assert len(shuffled(count, size)) == step[key]


def test_more_than_capacity_is_refused():
    memory = ExemplarMemory(4)
    memory.make_room(2)
    memory.keep(0, [1, 2])
    with pytest.raises(ValueError, match="exceed"):
        memory.keep(1, [3, 4, 5])
    with pytest.raises(ValueError, match="already"):
        memory.keep(0, [6])


def test_a_class_smaller_than_its_share_keeps_all():
    assert sorted(at_random(random.Random(0))([5, 6], 10)) == [5, 6]


def test_ssils_own_code_keeps_the_first_clips():
    assert first([5, 6, 7], 2) == [5, 6]
    assert first([5], 2) == [5]
