"""Rows that are read where they lie."""

from __future__ import annotations

import copy
import gc
import pickle
from collections import deque

import numpy as np
import pytest
import torch

from avbench.learning.lending import Lender
from avbench.learning.picked import Picked, rows_of, tensor

HELD = torch.arange(24.0).reshape(6, 4)


@pytest.mark.parametrize("rows", [None, [], [2], [1, 2, 3], [4, 0, 0, 5], [0, 1, 2, 3, 4, 5]])
def test_rows_are_those_of_a_tensor(rows):
    picked = Picked(HELD, None if rows is None else np.array(rows, dtype=np.int64))
    expected = HELD if rows is None else HELD[torch.tensor(rows, dtype=torch.long)]
    assert (len(picked), picked.shape, picked.dtype) == (
        len(expected),
        expected.shape,
        expected.dtype,
    )
    assert torch.equal(picked.read(), expected)
    assert torch.equal(tensor(picked), expected)
    assert torch.equal(picked.view(len(picked), 2, 2).read(), expected.view(-1, 2, 2))
    for some in (slice(None), slice(1, 3), slice(2, 2), slice(3, 99)):
        assert torch.equal(rows_of(picked, some), expected[some])
        assert torch.equal(picked[some].read(), expected[some])
        assert picked[some].shape == expected[some].shape


def test_rows_side_by_side_are_not_copied():
    picked = Picked(HELD, np.array([5, 2, 3, 3]))
    for some, first in ((slice(0, 1), 5), (slice(1, 3), 2)):
        assert rows_of(picked, some).data_ptr() == HELD[first].data_ptr()
    assert rows_of(picked, slice(2, 4)).data_ptr() != HELD[3].data_ptr()


@pytest.mark.parametrize("rows", [[-1], [-2, -1], [4, -1]])
def test_rows_are_counted_from_the_end_as_a_tensors_are(rows):
    picked = Picked(HELD, np.array(rows))
    assert torch.equal(rows_of(picked, slice(None)), HELD[rows])
    with pytest.raises(IndexError):
        rows_of(Picked(HELD, np.array([5, 6])), slice(None))


@pytest.mark.parametrize("rows", [None, np.array([4, 0, 5])])
@pytest.mark.parametrize(
    "use",
    [
        lambda picked: picked.float(),
        lambda picked: picked.to("cpu"),
        lambda picked: picked[0],
        lambda picked: picked[:, 1],
        lambda picked: picked[torch.tensor([0])],
        list,
        np.asarray,
        lambda picked: torch.cat([HELD, picked]),
        lambda picked: torch.nn.functional.linear(picked, HELD),
    ],
)
def test_who_takes_them_for_a_tensor_is_told_how_to_read_them(rows, use):
    with pytest.raises((AttributeError, TypeError), match=r"\.read\(\) returns a tensor"):
        use(Picked(HELD, rows))


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))]
)
@pytest.mark.parametrize("rows", [None, np.array([4, 0, 5])])
def test_a_copy_holds_its_own_rows(rows, copied):
    picked = Picked(HELD, rows)
    again = copied(picked)
    assert again.shape == picked.shape
    assert torch.equal(again.read(), picked.read())
    assert rows is None or rows_of(again, slice(0, 1)).untyped_storage().nbytes() == 3 * 4 * 4


@pytest.mark.parametrize("rows", [None, np.arange(6)])
def test_what_a_method_reads_is_its_own(rows):
    """Where features lie must not show, whatever a method does to what it read."""
    held = HELD.clone()
    picked = Picked(held, rows)
    picked.read().zero_()
    assert torch.equal(held, HELD)
    assert (tensor(picked) is held) == (rows is None)


@pytest.mark.parametrize("shape", [(3, 2, 2), (-1, 4), (12, 2)])
def test_a_view_has_as_many_rows(shape):
    with pytest.raises(ValueError, match="shapes that begin with 6"):
        Picked(HELD).view(*shape)


def test_memory_is_lent_again_when_nobody_refers_to_it():
    made = []
    lender = Lender(lambda count: made.append(count) or np.empty(count, np.uint8))
    first, second = lender.lend(4), lender.lend(3)
    assert made == [4, 3]
    view = torch.from_numpy(first)[1:]
    del first
    gc.collect()
    lender.lend(2)  # not what a view still refers to
    assert made == [4, 3, 2]
    del view, second
    gc.collect()
    kept = lender.lend(5)
    assert (len(kept), made) == (5, [4, 3, 2, 5])


@pytest.mark.slow
def test_memory_for_large_and_small_batches_by_turns_is_made_once():
    made = []
    lender = Lender(lambda count: made.append(count) or np.empty(count, np.uint8))
    for count in (2, 5, 2, 5, 2):
        both = lender.lend(count), lender.lend(7 - count)
        assert [len(lent) for lent in both] == [count, 7 - count]
        del both
        gc.collect()
    assert sorted(made) in ([2, 5], [2, 5, 5])
    lender.forget()
    lender.lend(1)
    assert made[-1] == 1


def test_another_thread_may_take_the_last_memory():
    class Taken(deque):
        """As it looks to a thread that is too late."""

        def __len__(self):
            return 1

    lender = Lender(np.empty)
    lender._free = Taken()
    assert len(lender.lend(3)) == 3
