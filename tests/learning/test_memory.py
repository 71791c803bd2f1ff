"""The exemplar memory: bookkeeping of the authors' code, and its limits."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from avbench.learning.memory import ExemplarMemory, at_random

GOLDEN = Path(os.environ.get("AVBENCH_GOLDEN", Path(__file__).parents[1] / "golden"))
RECORDS = json.loads((GOLDEN / "memory.json").read_text())


@pytest.mark.parametrize("script", ["ours", "ssil"])
def test_random_memory_matches_the_authors(script):
    record = RECORDS["random_memory"][script]
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


@pytest.mark.parametrize("dataset", ["AVE", "kinetics-sounds", "VGGSound_100"])
def test_places_per_class_on_the_official_benchmarks(dataset):
    record = RECORDS["official_splits"][dataset]
    per_step = record["class_num_per_step"]
    memory = ExemplarMemory(record["memory_size"])
    for step in record["steps"][1:]:
        places = memory.make_room(step["step"] * per_step)
        assert places == step["m_per_class"]
        first = (step["step"] - 1) * per_step
        for index in range(first, first + per_step):
            memory.keep(index, range(index * 1000, index * 1000 + places))


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
