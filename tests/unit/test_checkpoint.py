"""Checkpoints: whole or not at all, refused when damaged, and a resumed run equals an unbroken one."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from entrostat.learner import checkpoint, saved
from entrostat.learner.ranks import ALONE, Ranks
from entrostat.learner.trainer import Trainer
from entrostat.protocol.errors import CheckpointDamaged, ResourceError
from entrostat.protocol.learner_settings import LearnerSettings
from entrostat.protocol.messages import PolicyVersion
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations


def write(partial: Path) -> None:
    (partial / "policy").mkdir()
    (partial / "policy" / "model.safetensors").write_bytes(b"weights")
    (partial / "controller.bin").write_bytes(b"state")


def commit(directory: Path, step: int, branch: int = 0) -> Path:
    folder = directory / f"step-{step}"
    checkpoint.commit(folder, branch=branch, step=step, write=write)
    return folder


def test_a_committed_checkpoint_verifies(tmp_path: Path) -> None:
    folder = commit(tmp_path, 5, branch=3)
    manifest = checkpoint.verify(folder)
    assert (manifest.branch, manifest.step) == (3, 5)
    assert [file.path for file in manifest.files] == ["controller.bin", "policy/model.safetensors"]
    assert (folder / "controller.bin").read_bytes() == b"state"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b"Weights"),
        lambda path: path.write_bytes(b"weight"),
        lambda path: path.unlink(),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = commit(tmp_path, 5)
    damage(folder / "policy" / "model.safetensors")
    with pytest.raises(CheckpointDamaged, match=r"step-5/policy/model\.safetensors"):
        checkpoint.verify(folder)


@pytest.mark.parametrize("text", [b"", b"{", b'{"branch": 0}', b"\xff\xfe"])
def test_a_damaged_manifest_is_named(tmp_path: Path, text: bytes) -> None:
    folder = commit(tmp_path, 5)
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(CheckpointDamaged, match=r"step-5/manifest\.json"):
        checkpoint.verify(folder)


def test_a_save_that_fails_leaves_the_checkpoints_as_they_were(tmp_path: Path) -> None:
    def fails(partial: Path) -> None:
        write(partial)
        raise OSError("the disk is full")

    good = commit(tmp_path, 5)
    with pytest.raises(OSError, match="full"):
        checkpoint.commit(tmp_path / "step-6", branch=0, step=6, write=fails)
    assert checkpoint.newest(tmp_path) == good
    assert not (tmp_path / "step-6").exists()
    commit(tmp_path, 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-5", "step-7"]


def test_the_newest_checkpoint_is_of_the_newest_branch(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    assert checkpoint.newest(tmp_path / "missing") is None
    commit(tmp_path, 20, branch=0)
    later = commit(tmp_path, 15, branch=1)
    assert checkpoint.newest(tmp_path) == later


def test_a_new_branch_replaces_a_voided_checkpoint_of_the_same_step(tmp_path: Path) -> None:
    commit(tmp_path, 20, branch=0)
    assert checkpoint.verify(commit(tmp_path, 20, branch=1)).branch == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step-20"]


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40, 50):
        commit(tmp_path, step)
    checkpoint.retain(tmp_path, 2, {10: 0.2, 20: 0.9, 40: 0.3, 45: 1.0})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-20", "step-40", "step-50"]
    checkpoint.retain(tmp_path, 1, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step-50"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_resumed_learner_makes_the_same_next_step_to_the_bit(tmp_path: Path, dtype: str) -> None:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy", dtype=getattr(torch, dtype))
    stations, prompts = make_stations(model, tmp_path, dtype=dtype), make_prompts()
    first = Trainer(stations, prompts, PolicyVersion(branch=0, step=0), shared_memory=tmp_path)
    for step in range(2):
        train(first, step)
    snapshot = np.frombuffer(b"controller", np.uint8)
    folder = tmp_path / "checkpoints" / "step-2"
    first.save(folder, snapshot)()
    train(first, 2)
    second = Trainer(stations, prompts, PolicyVersion(branch=1, step=2), folder, shared_memory=tmp_path)
    train(second, 2)
    assert second.version == PolicyVersion(branch=1, step=3)
    theirs = second._policy.named_tensors()
    for name, tensor in first._policy.named_tensors().items():
        assert torch.equal(tensor, theirs[name]), name
    for ours, others in zip(first._optimizer._weights, second._optimizer._weights, strict=True):
        assert torch.equal(ours, others)
    assert (folder / "controller.bin").read_bytes() == b"controller"
    assert (folder / "policy" / "tokenizer.json").exists()
    first.close()
    second.close()


def test_after_a_resume_the_reference_is_still_the_policy_the_run_started_from(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model, prompts = make_policy(tmp_path / "policy"), make_prompts()
    stations = make_stations(model, tmp_path, learner=LearnerSettings(lr=1e-2, kl_coefficient=0.1))
    first = Trainer(stations, prompts, PolicyVersion(branch=0, step=0), shared_memory=tmp_path)
    train(first, 0)
    folder = tmp_path / "checkpoints" / "step-1"
    first.save(folder, np.zeros(3, np.uint8))()
    second = Trainer(stations, prompts, PolicyVersion(branch=1, step=1), folder, shared_memory=tmp_path)
    assert first._reference is not None
    assert second._reference is not None
    assert torch.equal(second._reference.head_weight, first._reference.head_weight)
    assert not torch.equal(second._reference.head_weight, second._policy.head_weight)
    first.close()
    second.close()


def test_a_learner_does_not_start_from_a_damaged_optimizer(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy")
    stations, prompts = make_stations(model, tmp_path), make_prompts()
    trainer = Trainer(stations, prompts, PolicyVersion(branch=0, step=0), shared_memory=tmp_path)
    train(trainer, 0)
    folder = tmp_path / "step-1"
    trainer.save(folder, np.zeros(3, np.uint8))()
    with (folder / "optimizer.pt").open("r+b") as file:
        file.seek(2000)
        file.write(b"!")
    with pytest.raises(CheckpointDamaged, match=r"step-1/optimizer\.pt"):
        Trainer(stations, prompts, PolicyVersion(branch=1, step=1), folder, shared_memory=tmp_path)
    trainer.close()


LOST = "[../gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 300000ms for recv operation to complete"


@pytest.mark.parametrize(
    ("ranks", "said", "expected"),
    [
        (Ranks(number=1, count=2), LOST, RuntimeError),
        (Ranks(number=1, count=2), "size mismatch for weight.head", CheckpointDamaged),
        (ALONE, "no such key: weight.hyper_connection", CheckpointDamaged),  # nobody was waited for
    ],
)
def test_a_rank_that_is_lost_while_a_checkpoint_is_read_says_nothing_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: Ranks, said: str, expected: type[Exception]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError(said)

    monkeypatch.setattr(saved, "load", fail)
    monkeypatch.setattr(checkpoint, "verify", lambda _: None)
    (tmp_path / saved.OPTIMIZER_PARTS).mkdir()
    policy: Any = SimpleNamespace(ranks=ranks)
    optimizer: Any = SimpleNamespace(named=dict)
    with pytest.raises(expected, match=re.escape(said)) as caught:
        saved.restore_state(tmp_path, policy, optimizer)
    assert type(caught.value) is expected


def test_a_checkpoint_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    model = make_policy(tmp_path / "policy")
    trainer = Trainer(
        make_stations(model, tmp_path), make_prompts(), PolicyVersion(branch=0, step=0), shared_memory=tmp_path
    )
    blocked = tmp_path / "a_file"
    blocked.write_text("in the way")
    with pytest.raises(ResourceError, match="free some of the disk"):
        trainer.save(blocked / "step-0", np.zeros(3, np.uint8))()
    trainer.close()


def train(trainer: Trainer, step: int) -> None:
    groups = [make_group(i, seed=step) for i in range(4)]
    trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0)
