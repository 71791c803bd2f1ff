"""Where features lie changes how fast they come, and nothing else."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from avbench.evaluation.evaluator import evaluate
from avbench.learning import residency as module
from avbench.learning.picked import tensor
from avbench.learning.residency import Source, columns, settle
from avbench.types import AvbenchError
from tests.helpers.processes import forked

CPU = torch.device("cpu")


@pytest.fixture
def store(tiny, with_features):
    return with_features(tiny())


@pytest.fixture(params=["audio-visual", "audio", "visual"])
def readable(request, store):
    return columns(store, request.param)


def same(found, store, rows, readable):
    for one, column, read in zip(found, readable, (store.audio, store.visual), strict=True):
        assert (one is None) == (column is None)
        if one is not None:
            assert one.dtype == torch.float16
            assert one.shape == read(rows).shape
            np.testing.assert_array_equal(tensor(one).numpy(), read(rows))


@pytest.mark.parametrize("asked", ["device", "ram", "disk"])
def test_the_same_features_wherever_they_lie(store, readable, asked):
    held = np.array([90, 3, 4, 60, 5, 3])
    source = settle(readable, held, CPU, asked)
    assert source.residency == ("ram" if asked == "device" else asked)
    rows = np.array([60, 3, 3, 90])
    same(source.read(rows), store, rows, readable)
    batches = [np.array(b, dtype=np.int64) for b in ([4], [5, 3, 90], [], [60, 60], [3, 4, 5, 60])]
    for rows, found in zip(batches, source.sweep(batches), strict=True):
        same(found, store, rows, readable)


def test_a_forked_process_reads_ahead_too(store):
    source = settle(columns(store, "audio"), np.arange(90), CPU, "disk")
    batches = [np.array([4, 3]), np.array([60])]

    def read():
        return [audio.numpy() for audio, _ in source.sweep(batches)]

    for here, there in zip(read(), forked(read), strict=True):
        np.testing.assert_array_equal(here, there)


class Elsewhere(str):
    """A CPU's memory, taken for that of another device."""

    type = "elsewhere"


def test_on_a_device_that_is_none_of_the_cpu(store, monkeypatch):
    """The way of a GPU, without one: all is there before it is asked for."""
    monkeypatch.setattr(module, "_CHUNK", 16)
    both = columns(store, "audio-visual")
    source = module._Resident(both, Elsewhere("cpu"), "device", np.arange(0, 120, 3))
    rows = np.array([30, 0, 117])
    same(source.read(rows), store, rows, both)
    (found,) = source.sweep([rows])
    same(found, store, rows, both)


def test_in_memory_for_a_device_of_its_own(store, readable):
    rows = np.array([3, 4, 60, 90])
    held = [None if column is None else column.held(rows) for column in readable]
    source = Source(tuple(held), CPU, "ram")
    for some in (np.array([60, 3, 3, 90]), rows[:0]):
        same(source.read(some), store, some, readable)


def test_what_is_chosen_depends_on_what_fits(store, monkeypatch):
    both = columns(store, "audio-visual")
    size = 30 * (1 + 32) * 12 * 2
    for limit, expected in ((4 * size, "ram"), (4 * size - 1, "disk")):
        monkeypatch.setattr(module, "memory_limit", lambda limit=limit: limit)
        assert settle(both, np.repeat(np.arange(30), 2), CPU).residency == expected
    monkeypatch.setattr(module, "memory_limit", lambda: size - 1)
    with pytest.raises(AvbenchError, match="more than the 0.0 GB of ram: choose another"):
        settle(both, np.arange(30), CPU, "ram")


def test_what_torch_keeps_of_a_gpu_is_free_for_the_next_step(store, monkeypatch):
    both = columns(store, "audio-visual")
    size = 30 * (1 + 32) * 12 * 2
    monkeypatch.setattr(module, "_Resident", lambda of, device, residency, rows: residency)
    monkeypatch.setattr(module, "Source", lambda of, device, residency: residency)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (size // 2, 9 * size))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * size)
    for used, expected in ((3 * size // 2, "device"), (3 * size // 2 + 1, "ram")):
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device, used=used: used)
        assert settle(both, np.arange(30), torch.device("cuda")) == expected


def test_batches_that_are_still_used_are_not_overwritten(store):
    source = Source(columns(store, "audio-visual"), CPU, "disk")
    rows = [np.array([n, n + 1]) for n in range(0, 60, 2)]
    kept = [(r, *features) for r, features in zip(rows, source.sweep(rows), strict=True)]
    views = [tensor(visual)[1:, 3] for _, visual in source.sweep(rows)]
    weight = torch.ones(12, requires_grad=True)
    graphs = [(visual.read().float() * weight).sum() for _, visual in source.sweep(rows)]
    for r, audio, visual in kept:
        np.testing.assert_array_equal(audio.numpy(), store.audio(r))
        np.testing.assert_array_equal(visual.read().numpy(), store.visual(r))
    for r, view, graph in zip(rows, views, graphs, strict=True):
        np.testing.assert_array_equal(view.numpy(), store.visual(r)[1:, 3])
        (gradient,) = torch.autograd.grad(graph, weight)
        expected = store.visual(r).astype(np.float32).sum((0, 1))
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_memory_of_batches_is_used_again(store, monkeypatch):
    made = []
    new = module.Column.empty
    monkeypatch.setattr(module.Column, "empty", lambda *given: made.append(1) or new(*given))
    source = Source(columns(store, "visual"), CPU, "disk")
    for start in range(0, 100, 10):
        _, visual = source.read(np.arange(start, start + 10 - start // 50))
        same((None, visual), store, np.arange(start, start + len(visual)), columns(store, "visual"))
        del visual
        gc.collect()
    assert len(made) == 1


@pytest.mark.parametrize("asked", ["ram", "disk"])
def test_memory_goes_at_once_with_what_read_it(store, asked, monkeypatch):
    """Without the collector of cycles, or two steps would need memory at the same time."""
    made = []
    new = module.Column.empty

    def empty(column, count):
        memory = new(column, count)
        made.append(weakref.ref(memory))
        return memory

    monkeypatch.setattr(module.Column, "empty", empty)
    gc.collect()
    gc.disable()
    try:
        source = settle(columns(store, "audio-visual"), np.arange(30), CPU, asked)
        batch = source.read(np.array([3, 1]))
        assert len(made) == 2
        del batch, source
        assert not [memory for memory in made if memory() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize(("limit", "ahead"), [(16 * 24, 2), (16 * 24 - 1, 1), (8 * 24 - 1, 0)])
def test_no_more_than_two_batches_are_read_ahead(store, monkeypatch, limit, ahead):
    """Of one clip, 12 numbers of half precision."""
    monkeypatch.setattr(module, "memory_limit", lambda: limit)
    asked = []
    both = columns(store, "audio")
    source = Source(both, CPU, "disk")
    read = source.read

    def reading(rows):
        asked.append(int(rows[0]))
        return read(rows)

    monkeypatch.setattr(source, "read", reading)
    sweep = source.sweep(np.array([n]) for n in range(10))
    for number in range(4):
        next(sweep)
        module._reader().submit(int).result()  # what was handed to the thread is done
        assert asked == list(range(number + 1 + ahead))
    sweep.close()
    module._reader().submit(int).result()
    assert len(asked) <= 4 + ahead


def test_what_goes_wrong_while_reading_ahead_is_told(store):
    source = Source(columns(store, "audio"), CPU, "disk")
    sweep = source.sweep([np.array([0]), np.array([500])])
    next(sweep)
    with pytest.raises(IndexError):
        next(sweep)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["avcil", "icarl-nme"])
def test_runs_are_the_same_to_the_byte(tiny, with_features, tmp_path, method):
    benchmark = tiny()
    with_features(benchmark)
    settings = {"epochs": "2", "batch_size": "8"}
    found = []
    for residency in ("ram", "disk"):
        out = tmp_path / residency
        result = evaluate(
            benchmark, method, seeds=[0], out=out, settings=settings, residency=residency
        )
        assert {step.residency for run in result.runs for step in run.cost} == {residency}
        files = [out / "seed-0" / "predictions.parquet", *out.glob("seed-0/step-*.safetensors")]
        assert len(files) == 4
        found.append([path.read_bytes() for path in sorted(files)])
    assert found[0] == found[1]
