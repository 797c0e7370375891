"""Recorded groups: whole, or refused by name; and trained again they make the same weights."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner import recorded
from entrostat.learner.remote import LearnerActor
from entrostat.protocol import metrics, wire
from entrostat.protocol.arrays import UInt8
from entrostat.protocol.errors import CheckpointDamaged, EntrostatError, ResourceError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import Group, PolicyVersion, StepOutcome, TrainOrder
from entrostat.protocol.settings import Stations
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations

VERSION = PolicyVersion(branch=1, step=7)
STEPS = 3


def frames(count: int = 2) -> list[UInt8]:
    return [wire.encode(make_group(i)) for i in range(count)]


def test_what_was_recorded_is_read_back_and_nothing_else_lies_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "journal/groups"
    recorded.write(folder, VERSION, frames(4))
    recorded.write(folder, VERSION, frames(2))  # an order that was made anew
    assert [path.name for path in folder.iterdir()] == ["1.7.groups"]
    found = recorded.read(folder, VERSION)
    assert [frame.tobytes() for frame in found] == [frame.tobytes() for frame in frames(2)]
    assert wire.decode(found[1], Group).rollout.lease.id == 1


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "cut short"),
        (lambda path: path.write_bytes(path.read_bytes()[:200] + b"!" + path.read_bytes()[201:]), "checksum"),
        (lambda path: path.write_bytes(b""), "expected an Entrostat message"),
    ],
)
def test_a_file_that_is_missing_or_damaged_is_named(tmp_path: Path, damage: Callable[[Path], None], said: str) -> None:
    recorded.write(tmp_path, VERSION, frames())
    damage(tmp_path / "1.7.groups")
    with pytest.raises(CheckpointDamaged, match=rf"version 1\.7 can't be read from .*1\.7\.groups \(.*{said}"):
        recorded.read(tmp_path, VERSION)


def test_the_groups_of_another_order_are_not_taken_for_these(tmp_path: Path) -> None:
    recorded.write(tmp_path, VERSION, frames())
    (tmp_path / "1.7.groups").rename(tmp_path / "1.8.groups")
    with pytest.raises(CheckpointDamaged, match=r"from version 1\.7, expected 1\.8: it was renamed"):
        recorded.read(tmp_path, PolicyVersion(branch=1, step=8))


def test_groups_that_can_not_be_written_are_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match=r"version 1\.7 can't be recorded"):
        recorded.write(tmp_path / "file/groups", VERSION, frames())


def test_those_of_earlier_steps_are_removed_whatever_their_branch(tmp_path: Path) -> None:
    recorded.prune(tmp_path / "missing", 5)
    for branch, step in ((0, 4), (0, 5), (1, 3), (1, 12)):
        recorded.write(tmp_path, PolicyVersion(branch=branch, step=step), frames(1))
    recorded.prune(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.5.groups", "1.12.groups"]


class Learner(LearnerActor):
    """The actor without Ray, and with a buffer that holds every group asked for but those `lost`."""

    lost: tuple[int, ...] = ()

    def _fetched(self, lease_ids: list[int]) -> tuple[list[UInt8], list[int]]:
        if self.lost:
            return [], list(self.lost)
        return [wire.encode(make_group(lease_id, seed=lease_id)) for lease_id in lease_ids], []


@pytest.fixture
def stations(tmp_path: Path) -> Stations:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy")
    made = make_stations(model, tmp_path / "run", learner=LearnerSettings(lr=1e-2, threads=1))
    return msgspec.structs.replace(made, record_samples=True)


Starts = Callable[..., Learner]


@pytest.fixture
def start(stations: Stations, logs: None) -> Iterator[Starts]:
    started: list[Learner] = []

    def begin(branch: int = 0, step: int = 0, checkpoint: Path | None = None) -> Learner:
        Path(stations.directory).mkdir(exist_ok=True)
        Path(stations.directory, "branch").write_text(f"{branch}\n", encoding="utf-8")
        settings, prompts = wire.encode(stations), wire.encode(make_prompts())
        folder = None if checkpoint is None else str(checkpoint)
        started.append(Learner(settings, prompts, None, branch, step, folder))
        started[-1].start()
        return started[-1]

    yield begin
    for learner in started:
        learner.stop()


def ordered(branch: int, step: int) -> TrainOrder:
    groups = [make_group(lease_id, seed=lease_id) for lease_id in range(4 * step, 4 * step + 4)]
    return make_order(groups, PolicyVersion(branch=branch, step=step))


def train(learner: Learner, order: TrainOrder) -> StepOutcome:
    return wire.decode(learner.train(wire.encode(order), 0.0), StepOutcome)


def retrain(learner: Learner, order: TrainOrder) -> StepOutcome:
    return wire.decode(learner.retrain(wire.encode(order)), StepOutcome)


def checksums(outcomes: Sequence[StepOutcome]) -> list[int]:
    return [outcome.manifest.checksum for outcome in outcomes]


def test_recorded_orders_trained_again_make_the_same_weights_and_reports(start: Starts, tmp_path: Path) -> None:
    first, folder = start(), tmp_path / "run/checkpoints/step-1"
    train(first, ordered(0, 0))
    first.save(str(folder), np.zeros(3, np.uint8))
    orders = [ordered(0, step) for step in range(1, 1 + STEPS)]
    outcomes = [train(first, order) for order in orders]
    first.commit()
    assert first._exporter.registry.get_sample_value(f"{metrics.CHECKPOINT_SECONDS.name}_count") == 1.0

    second = start(branch=1, step=1, checkpoint=folder)
    again = [retrain(second, order) for order in orders]
    assert checksums(again) == checksums(outcomes)
    assert len(set(checksums(outcomes))) == STEPS
    for step, (one, other) in enumerate(zip(outcomes, again, strict=True), 1):
        assert other.report.measured == PolicyVersion(branch=1, step=step)
        assert other.report.version == other.manifest.version == PolicyVersion(branch=1, step=step + 1)
        seen = {"measured": one.report.measured, "version": one.report.version, "phases": one.report.phases}
        # As text, because NaN is not equal to itself.
        assert repr(msgspec.structs.replace(other.report, **seen)) == repr(one.report)
    train(second, ordered(1, 1 + STEPS))
    names = {path.name for path in (tmp_path / "run/journal/groups").iterdir()}
    assert names == {"0.0.groups", "0.1.groups", "0.2.groups", "0.3.groups", "1.4.groups"}


def test_an_order_of_another_step_or_branch_is_not_trained(start: Starts) -> None:
    first = start()
    train(first, ordered(0, 0))
    second = start(branch=1)
    with pytest.raises(CheckpointDamaged, match=r"order from version 0\.1 can't be read"):
        retrain(second, ordered(0, 1))
    with pytest.raises(EntrostatError, match=r"from version 0\.0 came, the learner stands at 1\.0"):
        train(second, ordered(0, 0))
    retrain(second, ordered(0, 0))
    with pytest.raises(EntrostatError, match=r"from version 0\.0 came, the learner stands at 1\.1"):
        retrain(second, ordered(0, 0))


def test_an_order_whose_groups_were_lost_is_not_recorded(start: Starts, tmp_path: Path) -> None:
    learner = start()
    learner.lost = (2,)
    learner.train(wire.encode(ordered(0, 0)), 0.0)
    assert not (tmp_path / "run/journal").exists()


def test_a_commit_belongs_to_one_save(start: Starts, tmp_path: Path) -> None:
    learner = start()
    learner.save(str(tmp_path / "checkpoints/step-0"), np.zeros(3, np.uint8))
    learner.commit()
    with pytest.raises(EntrostatError, match="call save first"):
        learner.commit()
