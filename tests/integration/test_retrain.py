"""A checkpoint is committed while the cluster trains on; another cluster trains what was recorded since again."""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from entrostat import config as configs
from entrostat.cluster import Cluster
from entrostat.config import RunConfig
from entrostat.job import prepare
from entrostat.learner import checkpoint
from entrostat.protocol.messages import PolicyVersion, StepOutcome, TrainOrder
from entrostat.recovery import Beginning

DEADLINE_SECONDS = 60.0
STEPS = 3


@contextmanager
def started(config: RunConfig, directory: Path, version: PolicyVersion, restored: Path | None) -> Iterator[Cluster]:
    config, prompts, training = prepare(config, directory)
    cluster = Cluster(
        configs.stations(config, directory),
        prompts,
        training_prompts=training,
        start=Beginning(version=version, checkpoint=restored),
        address="local",
        stall_seconds=config.run.stall_seconds,
    )
    with closing(cluster):
        cluster.start()
        yield cluster


def step(cluster: Cluster) -> tuple[TrainOrder, StepOutcome]:
    deadline, order = time.monotonic() + DEADLINE_SECONDS, None
    while order is None:
        assert time.monotonic() < deadline
        order = cluster.next_order(1.0)
    outcome = cluster.train(order, 0.0)
    assert isinstance(outcome, StepOutcome)
    cluster.report(outcome)
    return order, outcome


def test_recorded_orders_are_trained_again_from_a_checkpoint_to_the_same_weights(
    repository: Path, tmp_path: Path
) -> None:
    settings = ["run.record_samples=true", "evaluation.tasks=[]", "report.samples_per_step=0"]
    config = configs.load(repository / "deploy/runs/simulated.toml", settings, to_run=True)
    folder = tmp_path / "checkpoints/step-1"
    with started(config, tmp_path, PolicyVersion(branch=0, step=0), None) as cluster:
        step(cluster)
        commit = cluster.save(folder)
        made = [step(cluster) for _ in range(STEPS)]
        assert cluster.committed(commit, wait=True)
    assert checkpoint.verify(folder).step == 1
    with started(config, tmp_path, PolicyVersion(branch=1, step=1), folder) as cluster:
        again = [cluster.retrain(order) for order, _ in made]
    assert [one.manifest.checksum for one in again] == [outcome.manifest.checksum for _, outcome in made]
    assert [one.manifest.version for one in again] == [PolicyVersion(branch=1, step=i) for i in range(2, 2 + STEPS)]
    assert len({one.manifest.checksum for one in again}) == STEPS
