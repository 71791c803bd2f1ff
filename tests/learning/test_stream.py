"""What a method gets to see, and what it does not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from avbench.features.store import FeatureStore
from avbench.learning.memory import ExemplarMemory
from avbench.learning.picked import Picked, tensor
from avbench.learning.stream import _MEMORY, _OPEN, _VALIDATION, TaskStream
from avbench.manifests.manifest import Manifest
from avbench.manifests.variant import by_hash
from avbench.types import ProtocolError
from tests.helpers.reach import reached

CPU = torch.device("cpu")


@pytest.fixture
def stream(tiny, with_features):
    def make(
        *,
        modality="audio-visual",
        joint=False,
        memory=12,
        keep=lambda clip_id: True,
        residency=None,
        questions=None,
        **spec,
    ):
        benchmark = tiny(memory=memory or 0, **spec)
        store = with_features(benchmark, keep=keep)
        return TaskStream(
            benchmark.manifest,
            store,
            modality=modality,
            joint=joint,
            memory=None if memory is None else ExemplarMemory(memory),
            device=CPU,
            residency=residency,
            questions=questions,
        )

    return make


def first(positions, places):
    return positions[:places]


def test_each_step_has_its_own_classes_and_validates_on_all_seen(stream):
    for task in stream():
        new = {2 * task.step, 2 * task.step + 1}
        assert set(task.train.labels) == new
        assert len(task.train) == 24
        assert len(task.val) == 4 * task.seen_classes
        assert (task.old_classes, task.seen_classes) == (2 * task.step, 2 * task.step + 2)


def test_joint_access_sees_all_seen_classes(stream):
    for task in stream(joint=True):
        assert set(task.train.labels) == set(range(task.seen_classes))


def test_unequal_steps(stream):
    sizes = [len(set(task.train.labels)) for task in stream(classes=6, classes_per_step=[3, 1, 2])]
    assert sizes == [3, 1, 2]


def test_features_and_labels_belong_together(tiny, with_features, stream):
    tasks = stream()
    store = with_features(tiny())
    for task in tasks:
        positions = np.array([3, 0, 3])
        batch = task.train.batch(positions)
        np.testing.assert_array_equal(batch.audio, store.audio(_OPEN[task.train].rows[positions]))
        tokens = batch.visual.read()
        np.testing.assert_array_equal(tokens, store.visual(_OPEN[task.train].rows[positions]))
        classes = [int(store.clip_ids[row][1]) for row in _OPEN[task.train].rows[positions]]
        assert batch.labels.tolist() == classes
        assert batch.audio.dtype == torch.float32


def test_exemplars_are_what_was_kept(stream):
    kept: list[int] = []
    for task in stream(memory=13):
        assert _OPEN[task.exemplars].rows.tolist() == kept
        task.remember(first)
        per_class = 13 // task.seen_classes
        own = [
            _OPEN[task.train].rows[task.train.labels == c][:per_class]
            for c in sorted(set(task.train.labels))
        ]
        kept = (
            [
                r
                for group in np.split(np.array(kept, dtype=int), task.old_classes or 1)
                for r in group[:per_class]
            ]
            if kept
            else []
        )
        kept += np.concatenate(own).tolist()


def test_reading_an_earlier_step_is_stopped(stream):
    earlier = None
    for task in stream():
        if earlier is not None:
            with pytest.raises(ProtocolError, match="earlier step"):
                earlier.train.batch(np.array([0]))
            if earlier.step:
                with pytest.raises(ProtocolError, match="earlier step"):
                    earlier.exemplars.batch(np.array([0]))
        task.remember(first)
        earlier = task


def test_keeping_too_much_or_foreign_clips_is_stopped(stream):
    task = next(iter(stream()))
    with pytest.raises(ProtocolError, match="at most 6"):
        task.remember(lambda positions, places: positions[: places + 1])
    task = next(iter(stream()))
    with pytest.raises(ProtocolError, match="its own clips"):
        task.remember(lambda positions, places: [9999])


def test_a_modality_never_sees_the_other(stream):
    for modality, hidden in (("audio", "visual"), ("visual", "audio")):
        batch = next(iter(stream(modality=modality))).train.batch(np.arange(2))
        assert getattr(batch, hidden) is None
        assert getattr(batch, modality) is not None


def test_test_clips_come_without_labels(stream):
    tasks = stream()
    clips, rows = tasks.test(1)
    assert len(clips) == len(rows) == 16
    assert not hasattr(clips, "labels")
    # Nor does their order tell: batches of one class would.
    classes = tasks._manifest.class_indices[rows]
    assert set(classes) == {0, 1, 2, 3}
    assert (np.diff(classes) != 0).sum() > 6
    np.testing.assert_array_equal(rows, stream().test(1)[1])


def test_the_order_of_test_and_validation_clips_gives_no_label_away(stream):
    """Whoever knows how many clips there are must not be able to sort them by class."""
    tasks = stream(classes=8, per_class=100)
    for task in tasks:
        _, rows = tasks.test(task.step)
        shown = tasks._manifest.class_indices[rows]
        for labels in (shown, _VALIDATION[task.val][1]):
            count = len(labels)
            in_class_order = np.repeat(np.arange(task.seen_classes), count // task.seen_classes)
            for seed in (0, 1, task.step, count):
                guess = np.random.Generator(np.random.PCG64(seed)).permutation(in_class_order)
                assert (guess == labels).mean() < 2.0 / task.seen_classes or task.step == 0
                assert (guess == labels).mean() < 0.8
            # Nor do neighbours, nor a fixed distance between clips.
            for shift in (1, 2, count // task.seen_classes):
                same = (labels[shift:] == labels[:-shift]).mean()
                assert same < 1 / task.seen_classes + 0.25
        ids = [tasks._manifest.clip_ids[row] for row in rows]
        assert ids == by_hash(task.step, sorted(ids))


def test_the_order_of_a_clip_does_not_depend_on_the_others(stream):
    def order(**spec):
        tasks = stream(**spec)
        return [tasks._manifest.clip_ids[row] for row in tasks.test(2)[1]]

    some = set(order())
    assert [clip for clip in order(per_class=40) if clip in some] == order()


def test_clips_do_not_tell_where_they_lie(stream):
    """Rows of the store are in class order."""
    clips, _ = stream().test(1)
    assert not hasattr(clips, "rows")
    assert not hasattr(next(iter(stream())).train, "rows")


def test_validation_takes_one_class_a_clip(stream):
    task = next(iter(stream()))
    assert task.val.accuracy(lambda clips: torch.zeros(len(clips), dtype=torch.int64)) == 0.5
    with pytest.raises(ProtocolError, match="must return 8 classes"):
        task.val.accuracy(lambda clips: np.zeros((len(clips), 1), dtype=int))


def test_accuracy_on_validation_clips_is_counted_and_limited(stream):
    tasks = stream(questions=3)
    for task in tasks:
        assert tasks.questions.asked == 0
        for number in range(3):
            task.val.accuracy(lambda clips: np.zeros(len(clips), dtype=int), from_class=number)
            assert tasks.questions.asked == number + 1
        with pytest.raises(ProtocolError, match="more than 3 times in a step: .* once an epoch"):
            task.val.accuracy(lambda clips: np.zeros(len(clips), dtype=int))
        assert tasks.questions.asked == 3
        task.remember(first)


def test_a_step_that_is_over_is_over(stream):
    tasks = iter(stream())
    before = next(tasks)
    next(tasks)
    with pytest.raises(ProtocolError, match="once a step"):
        before.remember(first)
    with pytest.raises(ProtocolError, match="earlier step"):
        before.val.accuracy(lambda clips: clips.features(np.arange(len(clips))))


@pytest.mark.parametrize("residency", ["ram", "disk"])
def test_closed_is_closed_for_every_view_of_the_clips(residency, stream):
    """A sweep that was begun does not read on, nor does what would be read where it lies."""
    tasks = stream(residency=residency)
    steps = tasks.since(0)
    task = next(steps)
    parts = [np.array([row]) for row in range(10)]
    sweeps = [
        task.train.sweep(parts),
        task.exemplars.sweep(iter(parts)),
        task.batches((part, None) for part in parts),
    ]
    next(sweeps[0])
    next(sweeps[2])
    tested, _ = tasks.test(0)
    sweeps.append(tested.sweep(parts))
    next(sweeps[3])
    tested.close()
    validated = []

    def predict(clips):
        sweeps.append(clips.sweep(parts))
        validated.append(next(sweeps[4])[1])
        return np.zeros(len(clips), dtype=int)

    task.val.accuracy(predict)
    views = [task.train.features(parts[0])[1], task.train.batch(parts[1]).visual, *validated]
    views += [views[0][:1], views[1].view(1, 8, 4, 12)]
    task.remember(first)
    next(steps)
    for sweep in sweeps:
        with pytest.raises(ProtocolError, match="earlier step"):
            next(sweep)
    for view in views if residency == "ram" else ():  # from disk they are copies of their own
        for read in (Picked.read, tensor, copy.copy, lambda rows: rows[:1]):
            with pytest.raises(ProtocolError, match="clips that are closed"):
                read(view)


def test_validation_measures_and_does_not_teach(stream):
    task = next(iter(stream()))
    assert not hasattr(task.val, "batch")
    assert not hasattr(task.val, "labels")
    assert task.val.accuracy(lambda clips: np.zeros(len(clips), dtype=int)) == 0.5


def test_labels_cannot_be_changed(stream):
    task = next(iter(stream()))
    with pytest.raises(ValueError, match="read-only"):
        task.train.labels[:] -= 1


def test_exemplars_are_for_methods_that_declare_them(stream):
    task = next(iter(stream(memory=None)))
    assert len(task.exemplars) == 0
    with pytest.raises(ProtocolError, match="uses_memory"):
        task.remember(first)


def test_exemplars_are_kept_once_a_step(stream):
    task = next(iter(stream()))
    task.remember(first)
    with pytest.raises(ProtocolError, match="once a step"):
        task.remember(first)
    assert len(_MEMORY[task.train][0]) == 12


def test_a_step_without_any_clip_is_told(stream):
    def keep(clip_id):
        return not clip_id.startswith(("c2", "c3"))

    with pytest.raises(Exception, match="step 2 has no train clip"):
        list(stream(keep=keep))


def test_nothing_handed_out_leads_to_what_is_hidden(stream):
    tasks = stream()
    for task in tasks:
        task.remember(first)
        clips, rows = tasks.test(task.step)
        labels = [_VALIDATION[task.val][1], tasks._manifest.class_indices[rows]]
        hidden = [rows, tasks._store_row[rows], _OPEN[clips].rows, _OPEN[task.train].rows, *labels]
        assert any(thing is task.train.labels for thing in reached(task, clips))
        batch = task.train.batch(np.array([1, 0]))
        begun = [task.train.sweep([np.array([0, 1])]), clips.sweep([np.array([0, 1])])]
        begun += [task.batches([(np.array([0, 1]), None)]) for _ in range(2)]
        next(begun[3])
        for thing in reached(task, clips, task.val.accuracy, task.remember, batch, *begun):
            assert not isinstance(thing, torch.Tensor) or len(thing) == 2
            assert not isinstance(thing, FeatureStore | Manifest | ExemplarMemory | TaskStream)
            if isinstance(thing, np.ndarray):
                assert not any(np.array_equal(thing, secret) for secret in hidden)
        # A copy opens nothing.
        with pytest.raises(ProtocolError):
            copy.deepcopy(clips).features(np.array([0]))


def test_a_closed_step_cannot_be_opened_again(stream):
    tasks = iter(stream())
    earlier = next(tasks)
    next(tasks)
    earlier.train._open = True
    with pytest.raises(ProtocolError, match="earlier step"):
        earlier.train.batch(np.array([0]))
    with pytest.raises(AttributeError):
        earlier.train.is_open = True


def test_validation_clips_are_open_while_they_measure(stream):
    task = next(iter(stream()))
    kept = []

    def predict(clips):
        kept.append(clips)
        clips.features(np.arange(len(clips)))
        return np.zeros(len(clips), dtype=int)

    assert task.val.accuracy(predict) == 0.5
    with pytest.raises(ProtocolError, match="only to predict"):
        kept[0].features(np.array([0]))


def test_changed_labels_do_not_change_what_may_be_remembered(stream):
    task = next(iter(stream()))
    true = task.train.labels.copy()
    task.train.labels.setflags(write=True)
    task.train.labels[:] = 0
    task.remember(first)
    kept = _MEMORY[task.train][0].by_class
    for index in (0, 1):
        assert kept[index] == _OPEN[task.train].rows[true == index][:6].tolist()


def test_more_places_cannot_be_had(stream):
    task = next(iter(stream()))
    with pytest.raises(AttributeError):
        task.places = 1000
    object.__setattr__(task, "places", 1000)
    with pytest.raises(ProtocolError, match="at most 6"):
        task.remember(lambda positions, places: positions[: places + 1])
