"""A checkpoint is a copy of the learner's state at the save: what is trained while it is written is not in it."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import msgspec
import numpy as np
import pytest
import torch

from entrostat.learner import checkpoint
from entrostat.learner.trainer import Trainer
from entrostat.protocol.errors import ResourceError
from entrostat.protocol.learner_settings import LearnerSettings, Lora
from entrostat.protocol.messages import PolicyVersion, StepOutcome
from entrostat.protocol.settings import Stations
from tests.tiny_policy import make_group, make_order, make_policy, make_prompts, make_stations

FILE_BYTES = 50_000  # less than the policy's file, or than the optimizer's of a policy without adapters
SNAPSHOT = np.frombuffer(b"controller", np.uint8)
LORA = Lora(rank=2, alpha=4, targets=("q_proj", "down_proj"))


def settings(folder: Path, dtype: str, lora: bool) -> Stations:
    torch.set_num_threads(1)
    model = make_policy(folder / "policy", dtype=getattr(torch, dtype))
    learner = LearnerSettings(lr=1e-2, threads=1)
    if lora:
        learner = msgspec.structs.replace(learner, weights=LORA)
    return make_stations(model, folder, dtype=dtype, learner=learner)


@contextmanager
def started(stations: Stations, folder: Path, checkpoint: Path | None = None, branch: int = 0) -> Iterator[Trainer]:
    version = PolicyVersion(branch=branch, step=0 if checkpoint is None else int(checkpoint.name[-1]))
    trainer = Trainer(stations, make_prompts(), version, checkpoint, shared_memory=folder)
    yield trainer
    trainer.close()


def train(trainer: Trainer) -> StepOutcome:
    groups = [make_group(i, seed=trainer.version.step) for i in range(4)]
    return trainer.train(make_order(groups, trainer.version), groups, wait=0.0, fetch=0.0)


@pytest.mark.parametrize(("dtype", "lora"), [("float32", False), ("bfloat16", False), ("float32", True)])
def test_a_checkpoint_written_while_training_goes_on_is_to_the_bit_one_written_at_once(
    tmp_path: Path, dtype: str, lora: bool
) -> None:
    stations = settings(tmp_path, dtype, lora)
    at_once, later = tmp_path / "at_once/step-2", tmp_path / "later/step-2"
    with started(stations, tmp_path) as trainer:
        for _ in range(2):
            train(trainer)
        trainer.save(at_once, SNAPSHOT)()
        commit = trainer.save(later, SNAPSHOT)
        following = [train(trainer)]
        torch.rand(1)  # whatever draws: the random state is copied too
        thread = Thread(target=commit)
        thread.start()
        following += [train(trainer), train(trainer)]
        thread.join(60.0)
    assert checkpoint.verify(later) == checkpoint.verify(at_once)
    with started(stations, tmp_path, later, branch=1) as resumed:
        again = [train(resumed) for _ in following]
    assert [one.manifest.checksum for one in again] == [one.manifest.checksum for one in following]
    assert following[0].manifest.checksum != following[1].manifest.checksum


# Torch's and safetensors' writers say it each in their own way, and neither as an OSError.
@pytest.mark.parametrize(("lora", "said"), [(False, r"optimizer\.pt"), (True, "Error while serializing")])
def test_a_disk_without_room_is_told_by_name(tmp_path: Path, lora: bool, said: str) -> None:
    with started(settings(tmp_path, "float32", lora), tmp_path) as trainer:
        train(trainer)
        commit = trainer.save(tmp_path / "checkpoints/step-1", SNAPSHOT)
        earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, earlier[1]))
        try:
            with pytest.raises(ResourceError, match=rf"step-1 can't be written \({said}.*\): free some of the disk"):
                commit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, earlier)
    assert not list((tmp_path / "checkpoints").iterdir())
