"""The learner without its process: a policy, its optimizer, and where its versions are published."""

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from entrostat.learner import checkpoint, probe, samples
from entrostat.learner.adapters import adapter_tensors, merged_as_saved
from entrostat.learner.batching import check_tokens, flatten
from entrostat.learner.forward import PerToken
from entrostat.learner.measures import per_sample, step_report
from entrostat.learner.merged import Weight
from entrostat.learner.objective import Objective, steps_per_order
from entrostat.learner.optimizer import Optimizer, learning_rate
from entrostat.learner.policy import Policy, freeze, score
from entrostat.learner.ranks import ALONE, Ranks
from entrostat.learner.saved import commit, copied, restore_state, save_state, write_copy
from entrostat.learner.sharding import gather, shard
from entrostat.learner.shared_memory import ROOT
from entrostat.learner.steps import Taken, take
from entrostat.learner.trainer_setup import chosen_device, chosen_publisher, chosen_threads, loaded
from entrostat.protocol.arrays import Int32, UInt8
from entrostat.protocol.errors import ConfigError, EntrostatError
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.messages import (
    Group,
    PhaseSeconds,
    PolicyVersion,
    Probe,
    PromptSet,
    StepOutcome,
    TrainOrder,
    WeightsManifest,
)
from entrostat.protocol.settings import Stations

log = logging.getLogger(__name__)

LOCAL = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Made:
    """A version, and the steps that made it."""

    version: PolicyVersion
    taken: Taken
    rate: float
    tensors: Mapping[str, Weight]  # on the first rank
    probe: Probe


class Trainer:
    """Makes optimizer steps, one order at a time.

    With several ranks each has a trainer of its own. The first publishes, reports and saves, as one alone does; where
    it is asked to `publish_first`, `train` or `save`, the others are asked to `make_first`, `make` and `save_part`.

    Args:
        stations: the run's settings.
        prompts: those of the run, for the first probe and for the samples that people read.
        version: what the starting policy is called.
        checkpoint: a verified checkpoint's folder to restore from; None starts from the configured model.
        shared_memory: where versions are published.
        ranks: the trainers that make each step together.
        address: of this node, as actors on others reach it.
        fence: raises where this trainer may not write into the run directory any more.

    Raises:
        ModelError: the policy can't be loaded.
        CheckpointDamaged: the checkpoint changed since it was saved.
        ResourceError: no GPU where one is asked for, or no shared memory.
        ConfigError: the transport needs a GPU, and the learner has none.
    """

    def __init__(
        self,
        stations: Stations,
        prompts: PromptSet,
        version: PolicyVersion,
        checkpoint: Path | None = None,
        shared_memory: Path = ROOT,
        ranks: Ranks = ALONE,
        address: str = LOCAL,
        fence: Callable[[], None] = checkpoint.no_fence,
    ) -> None:
        self._stations, self._settings = stations, stations.learner
        self._prompts = {prompt.id: prompt for prompt in prompts.prompts}
        self.version = version
        self._fence = fence
        self._between_steps = False  # of an order: the weights are those of no version
        device = chosen_device(self._settings)
        if self._settings.threads or device.type == "cpu":
            # Ray leaves torch as many as the actor's CPUs: one.
            torch.set_num_threads(chosen_threads(stations, len(os.sched_getaffinity(0)), ranks.count))
        self._policy = shard(loaded(stations, checkpoint, device), ranks)
        self._reference = self._made_reference(device, ranks) if self._settings.kl_coefficient > 0 else None
        self._optimizer = Optimizer(self._policy.model.named_parameters(), self._settings, ranks)
        if checkpoint is not None:
            restore_state(checkpoint, self._policy, self._optimizer)
        self._objective = Objective(
            learner=self._settings,
            estimator=stations.entropy.estimator,
            temperature=stations.rollout.temperature,
            tokens=stations.entropy.tokens,
            response_limit=stations.rollout.max_response_tokens,
        )
        self._tolerance = probe.tolerance(stations.rollout.tolerance, stations.model.dtype)
        self._publisher = chosen_publisher(stations, device, shared_memory, address) if ranks.first else None

    @property
    def policy(self) -> Policy:
        """What is trained."""
        return self._policy

    def publish_first(self) -> WeightsManifest:
        """Publishes the starting policy."""
        return self._published(self.version, *self.make_first())

    def make_first(self) -> tuple[Mapping[str, Weight], Probe]:
        """The starting policy's weights, on the first rank, and their probe."""
        first = [self._encode(prompt.text) for prompt in list(self._prompts.values())[: self._settings.probe_sequences]]
        sequences = probe.first_sequences(first, self._settings.probe_sequences, self._stations.seed)
        found = probe.make_probe(sequences, score(self._policy, sequences), None, self._tolerance)
        return self._tensors(), found

    def train(
        self, order: TrainOrder, groups: Sequence[Group], *, wait: float, fetch: float, again: bool = False
    ) -> StepOutcome:
        """An order's optimizer steps and the version they make; `groups[i]` is the group of `order.groups[i]`.

        Args:
            order: what to train on, from this trainer's version.
            groups: its groups.
            wait: seconds spent waiting for the order.
            fetch: seconds spent fetching the groups.
            again: it was trained before, on an older branch.

        Raises:
            EntrostatError, ConfigError, NumericsError: as `make`.
            ResourceError: there is no room to publish the new version, or to write down its samples.
        """
        began, before = time.perf_counter(), self.version
        made = self.make(order, groups, again=again)
        manifest = self._published(made.version, made.tensors, made.probe)
        taken = made.taken
        phases = PhaseSeconds(
            wait=wait,
            fetch=fetch,
            forward_backward=taken.gradient_seconds,
            optimizer=taken.optimizer_seconds,
            publish=time.perf_counter() - began - taken.gradient_seconds - taken.optimizer_seconds,
        )
        report = step_report(
            taken, order, groups, measured=before, after=made.version, learning_rate=made.rate, phases=phases
        )
        self._write_samples(order, groups, taken.tokens)
        return StepOutcome(report=report, manifest=manifest)

    def make(self, order: TrainOrder, groups: Sequence[Group], *, again: bool = False) -> Made:
        """An order's optimizer steps, not yet published. One that is trained `again` may be of an older branch.

        Raises:
            EntrostatError: the order starts from another version, or the one before failed between its steps; or a
                group has tokens that are not the policy's.
            ConfigError: the order has fewer groups than `learner.minibatches`.
            NumericsError: the objective or its gradient is not finite; with one optimizer step per order the policy is
                as before.
        """
        self._check(order, again)
        check_tokens(groups, self._policy.head_weight.shape[0])
        after = PolicyVersion(branch=self.version.branch, step=self.version.step + 1)
        rate = learning_rate(after.step, self._stations.total_steps, self._settings)
        self._optimizer.clear()  # an order that failed may have left gradients
        self._between_steps = steps_per_order(self._settings) > 1
        lessons = flatten(order.groups, groups, self._settings, order.sample_balance)
        sequences = probe.sequences_of(groups, self._settings.probe_sequences)
        before = score(self._policy, sequences)
        taken = take(
            self._policy,
            self._reference,
            self._optimizer,
            lessons,
            replace(self._objective, usual_entropy=order.usual_entropy),
            order,
            rate,
            f"optimizer step {after}",
        )
        self._between_steps = False
        found = probe.make_probe(sequences, score(self._policy, sequences), before, self._tolerance)
        tensors = self._tensors()
        self.version = after
        return Made(version=after, taken=taken, rate=rate, tensors=tensors, probe=found)

    def save(self, folder: Path, controller: UInt8) -> Callable[[], None]:
        """Begins a checkpoint of this version with the controller's snapshot frame `[bytes]`; returns what commits it.

        That is called once, and may be called in another thread while this one trains on: it writes a copy that was
        made before. Several ranks meet to write theirs, so what they save is committed before this returns.

        Raises:
            EntrostatError: an order failed between its optimizer steps.
            ResourceError: the disk is full, or can't be written; of one rank, what is returned raises it.
            StationLost: a newer life of the run has begun; of one rank, what is returned raises it.
        """
        self._check_whole()
        if self._policy.ranks.alone:
            write = partial(write_copy, policy=self._policy, copy=copied(self._policy, self._optimizer))
            return partial(commit, folder, self.version, controller, write, self._fence)
        write = partial(save_state, policy=self._policy, optimizer=self._optimizer)
        commit(folder, self.version, controller, write, self._fence)
        return lambda: None

    def save_part(self, folder: Path) -> None:
        """Puts this rank's part into the checkpoint that the first rank commits.

        Raises:
            EntrostatError, ResourceError: as `save`.
        """
        self._check_whole()
        self._fence()
        save_state(checkpoint.partial(folder), self._policy, self._optimizer)

    def close(self) -> None:
        """Frees the published versions."""
        if self._publisher is not None:
            self._publisher.close()

    def _made_reference(self, device: torch.device, ranks: Ranks) -> Policy:
        """The policy the run started from, after a resume too; beside adapters its weights are here already."""
        if self._policy.adapters:
            return replace(self._policy, plain=True)
        return shard(freeze(loaded(self._stations, None, device)), ranks)

    def _tensors(self) -> Mapping[str, Weight]:
        """What is published; on the first rank."""
        tensors, weights = gather(self._policy), self._settings.weights
        if not tensors:
            return {}
        if not isinstance(weights, Lora):
            return self._policy.as_saved(tensors)
        return (adapter_tensors if weights.publish == "adapter" else merged_as_saved)(self._policy, tensors)

    def _published(self, version: PolicyVersion, tensors: Mapping[str, Weight], found: Probe) -> WeightsManifest:
        if self._publisher is None:
            raise EntrostatError(
                f"rank {self._policy.ranks.number} of the learner was asked to publish version {version}: only the "
                "first does"
            )
        return self._publisher.publish(version, tensors, found)

    def _check_whole(self) -> None:
        if self._between_steps:
            raise EntrostatError(
                f"the order from version {self.version} failed between its optimizer steps, and the learner's weights "
                "are no version's: resume the run from its last checkpoint"
            )

    def _check(self, order: TrainOrder, again: bool) -> None:
        self._check_whole()
        older = again and order.version.branch < self.version.branch and order.version.step == self.version.step
        if order.version != self.version and not older:
            raise EntrostatError(
                f"an order to go on from version {order.version} came, the learner stands at {self.version}: the "
                "controller and the learner disagree; resume the run from its last checkpoint"
            )
        if len(order.groups) < self._settings.minibatches:
            raise ConfigError(
                f"learner.minibatches = {self._settings.minibatches} and an order of {len(order.groups)} groups came: "
                "each optimizer step takes whole groups. Lower learner.minibatches, or raise batch.prompts"
            )

    def _write_samples(self, order: TrainOrder, groups: Sequence[Group], tokens: PerToken) -> None:
        count = self._stations.samples_per_step
        if count:
            total = sum(len(group.verdicts) for group in groups)
            records = samples.sample_records(
                order.groups, groups, per_sample(tokens, total), self._prompts, self._decode, count
            )
            path = Path(self._stations.directory) / "samples" / f"step-{self.version.step}.jsonl"
            self._fence()
            samples.write_samples(path, records)

    def _encode(self, text: str) -> Int32:
        return np.array(self._policy.tokenizer(text, add_special_tokens=False)["input_ids"], np.int32)

    def _decode(self, tokens: Int32) -> str:
        return str(self._policy.tokenizer.decode(tokens.tolist(), skip_special_tokens=True))
