"""The order of prompts: every epoch whole, none skipped while it is busy, and a position to go on from."""

import numpy as np
import pytest

from entrostat.controller.prompts import PromptOrder
from entrostat.protocol.errors import CheckpointDamaged


def test_an_epoch_has_every_prompt_once_and_epochs_differ() -> None:
    order = PromptOrder(50, 3, shuffle=True)
    epochs = [[order.take((), 0) for _ in range(50)] for _ in range(3)]
    assert all(sorted(epoch) == list(range(50)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    again = PromptOrder(50, 3, shuffle=True)
    assert [again.take((), 0) for _ in range(50)] == epochs[0]
    plain = PromptOrder(5, 3, shuffle=False)
    assert [plain.take((), 0) for _ in range(6)] == [0, 1, 2, 3, 4, 0]


def test_every_stretch_of_an_epoch_holds_each_level_in_its_share() -> None:
    levels = np.array([0] * 60 + [1] * 30 + [2] * 10, np.int32)
    order = PromptOrder(100, 3, shuffle=True, levels=levels)
    epochs = [[order.take((), 0) for _ in range(100)] for _ in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(100))
        for start in range(81):
            counts = np.bincount(levels[epoch[start : start + 20]], minlength=3)
            assert np.all(np.abs(counts - np.array([12, 6, 2])) <= 2)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_busy_prompt_waits_for_its_turn_and_is_not_skipped() -> None:
    order = PromptOrder(4, 0, shuffle=False)
    assert order.take({0}, 1) == 1
    assert order.take({0, 1}, 2) == 2
    order.freed(0)
    assert order.take({1, 2}, 2) == 0


def test_a_returned_prompt_that_is_busy_waits_too() -> None:
    order = PromptOrder(4, 0, shuffle=False)
    order.put_back((3,))
    assert order.take({3}, 1) == 0
    order.freed(3)
    assert order.take({0}, 1) == 3


def test_a_held_prompt_that_is_put_back_is_taken_once() -> None:
    order = PromptOrder(4, 0, shuffle=False)
    assert [order.take((), 0) for _ in range(4)] == [0, 1, 2, 3]
    assert order.take({0}, 1) == 1  # 0 is held
    order.put_back((0,))
    assert order.take({1}, 1) == 0
    order.freed(0)
    assert order.take({1}, 1) == 2


def test_a_position_survives_a_restart_with_what_was_under_way_first() -> None:
    order = PromptOrder(6, 0, shuffle=False)
    taken = [order.take((), 0) for _ in range(3)]
    order.unbind(taken[1:])
    position = order.position()
    later = PromptOrder(6, 0, shuffle=False)
    later.restore(position)
    assert [later.take((), 0) for _ in range(6)] == [1, 2, 3, 4, 5, 0]
    assert position.returned.dtype == np.int32


def test_a_position_of_a_larger_run_is_refused() -> None:
    larger = PromptOrder(9, 0, shuffle=False)
    larger.put_back([8])
    position = larger.position()
    with pytest.raises(CheckpointDamaged, match="it has 4"):
        PromptOrder(4, 0, shuffle=False).restore(position)
