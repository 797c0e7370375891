"""A Ray cluster of two nodes, one of which dies with the rollout actor that lives on it."""

import os
import time
from pathlib import Path
from typing import Any

from tests.chaos.faults import BEGIN, BETWEEN, CONFIG, SETTINGS, incarnations, told
from tests.chaos.living import ENVIRONMENT, Living
from tests.chaos.outcome import Outcome

HEAD_CPUS = 2  # the learner and one rollout actor; the other one has to wait for a node
OBJECT_STORE_BYTES = 256 << 20
# Ray finds a dead node after three missed checks of a second, not after its default of most of a minute.
HEALTH = {"health_check_period_ms": 1000, "health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}


def node_dies(folder: Path, steps: int, config: str = CONFIG, settings: tuple[str, ...] = SETTINGS) -> Outcome:
    """A second node joins a run that lacks a place for its second actor, is killed, and joins again."""
    os.environ.update(ENVIRONMENT)
    from ray.cluster_utils import Cluster  # Ray reads the environment when it is imported

    cluster: Any = Cluster(
        initialize_head=True,
        head_node_args={
            "num_cpus": HEAD_CPUS,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
            "_system_config": HEALTH,
        },
    )
    try:
        run = folder / "run"
        arguments = (config, "--run", str(run), "--address", cluster.address)
        with Living(folder, *arguments, settings=(*settings, "rollout.actors=2", f"run.steps={steps}")) as living:
            living.wait((run / "logs/rollout-0.log").exists, "the first actor")
            node = cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
            living.wait(incarnations(living, 2), "both actors")
            living.wait_step(BEGIN)
            signals = [(time.time(), living.step)]
            cluster.remove_node(node, allow_graceful=False)
            living.wait_more(BETWEEN)
            began = time.time()
            cluster.add_node(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
            living.wait(incarnations(living, 3), "an actor on the new node")
            joined = time.time() - began
            return told(living, signals, steps, stop=True, found={"seconds_until_a_new_node_serves": joined})
    finally:
        cluster.shutdown()
