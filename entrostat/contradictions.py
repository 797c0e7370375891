"""What only several settings together can say wrong: each a `Problem` at the setting one would change first."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from entrostat.protocol.entropy_settings import (
    BandLaw,
    BangBangLaw,
    ClampedEntropy,
    PiLaw,
    QuadraticLaw,
    SampleBalanceLaw,
    SmoothedTokens,
    ThermostatLaw,
    TopKEntropy,
)
from entrostat.protocol.learner_settings import Lora
from entrostat.protocol.settings import MixedResults, SimulatedSettings, VllmSettings
from entrostat.task_checks import of_tasks
from entrostat.validate import Problem

if TYPE_CHECKING:
    from entrostat.config import RunConfig

RUN_LAG = 1  # orders: a run makes each one after the report of the one before


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model's own `config.json` says of it; 0 for what it doesn't say."""

    model_type: str = ""
    vocab_size: int = 0
    hidden_size: int = 0
    num_hidden_layers: int = 0
    max_position_embeddings: int = 0


def model_facts(path: str) -> ModelFacts | None:
    """The facts of a model on this machine; None where it isn't here or can't be read."""
    try:
        return msgspec.json.decode(Path(path, "config.json").read_bytes(), type=ModelFacts)
    except (OSError, msgspec.DecodeError):
        return None


def contradictions(config: "RunConfig", evaluation_without_tasks: bool) -> list[Problem]:
    """All there are. `evaluation_without_tasks`: there is an [evaluation] section that names none."""
    return [
        *_run(config),
        *_deterministic(config),
        *of_tasks(config),
        *_evaluation(config, evaluation_without_tasks),
        *_lengths(config),
        *_law(config),
        *_targets(config),
        *_entropy(config),
        *_filter(config),
        *_learner(config),
        *_ratio(config),
        *_adapters(config),
    ]


def untrue_of_a_run(config: "RunConfig") -> list[Problem]:
    """What a simulation may choose and a run can't: there is one true value."""
    law = config.entropy.law
    if not isinstance(law, ThermostatLaw) or law.lag == RUN_LAG:
        return []
    return [
        Problem(
            ("entropy", "law", "lag"),
            f"= {law.lag}, expected {RUN_LAG}: a run makes each order after the report of the one before, whatever "
            "max_staleness is, and a law told otherwise steers wrongly; leave it out",
        )
    ]


def _run(config: "RunConfig") -> Iterator[Problem]:
    name, run = config.run.name, config.run
    if name in (".", "..") or "/" in name or "\\" in name or name != name.strip():
        yield Problem(("run", "name"), f"= {name!r}; expected a plain folder name: [run] directory says where it lies")
    if run.stall_seconds <= config.rollout.lease_seconds:
        yield Problem(
            ("run", "stall_seconds"),
            f"= {run.stall_seconds:g} is not above [rollout] lease_seconds = {config.rollout.lease_seconds:g}: "
            "one lost actor would end the run before its leases come back",
        )
    if config.verifier.deadline_seconds >= run.stall_seconds:
        yield Problem(
            ("verifier", "deadline_seconds"),
            f"= {config.verifier.deadline_seconds:g} is not below [run] stall_seconds = {run.stall_seconds:g}: "
            "one hanging verification would end the run",
        )


def _deterministic(config: "RunConfig") -> Iterator[Problem]:
    if not config.run.deterministic:
        return
    because = "[run] deterministic = true"
    if config.rollout.max_staleness > 1:
        yield Problem(
            ("rollout", "max_staleness"),
            f"= {config.rollout.max_staleness}, and {because} allows 0 or 1: the weights of two versions are kept",
        )
    if config.batch.filter != "none":
        yield Problem(
            ("batch", "filter"),
            f'= "{config.batch.filter}", and {because} needs "none": which group fills a place up '
            "depends on which is done first",
        )
    if isinstance(config.batch.sampling, MixedResults):
        yield Problem(
            ("batch", "sampling", "kind"),
            f'= "mixed_results", and {because} needs "uniform": what is known of a prompt when its turn comes depends '
            "on which groups are done by then",
        )
    if config.learner.ranks != 1 or config.learner.device != "cpu":
        yield Problem(
            ("learner", "device"),
            f"and ranks are {config.learner.device!r} and {config.learner.ranks}, and {because} needs one rank on the "
            'CPU: ranks = 1 and device = "cpu"',
        )


def _evaluation(config: "RunConfig", without_tasks: bool) -> Iterator[Problem]:
    if without_tasks or (config.evaluation.every_steps and not config.evaluation.tasks):
        yield Problem(
            ("evaluation", "tasks"),
            "is missing: an evaluation needs at least one [[evaluation.tasks]]; for none leave [evaluation] out",
        )
    yield from tries_problem(config)


def tries_problem(config: "RunConfig") -> Iterator[Problem]:
    """More tries than samples."""
    above = [k for k in config.evaluation.k if k > config.evaluation.samples]
    if above:
        yield Problem(
            ("evaluation", "k"),
            f"= {list(config.evaluation.k)}, but pass@{above[0]} takes {above[0]} samples of each prompt, and "
            f"evaluation.samples is {config.evaluation.samples}: raise it",
        )


def _lengths(config: "RunConfig") -> Iterator[Problem]:
    response, engine = config.rollout.max_response_tokens, config.rollout.engine
    limit, source = 0, ""
    if isinstance(engine, VllmSettings) and engine.max_model_tokens:
        limit, source = engine.max_model_tokens, "[rollout.engine] max_model_tokens"
    facts = model_facts(config.model.path)
    if facts and facts.max_position_embeddings:
        if limit > facts.max_position_embeddings:
            yield Problem(
                ("rollout", "engine", "max_model_tokens"),
                f"= {limit} is above what the model holds ({facts.max_position_embeddings})",
            )
        if not limit:
            limit, source = facts.max_position_embeddings, "the model's context"
    if limit and response >= limit:
        yield Problem(
            ("rollout", "max_response_tokens"),
            f"= {response} leaves no room for a prompt in {source} = {limit}",
        )
    if config.learner.microbatch_tokens <= response:
        yield Problem(
            ("learner", "microbatch_tokens"),
            f"= {config.learner.microbatch_tokens} can't hold a prompt and one response of "
            f"[rollout] max_response_tokens = {response}",
        )


def _law(config: "RunConfig") -> Iterator[Problem]:
    law, place = config.entropy.law, ("entropy", "law")
    if isinstance(law, ThermostatLaw):
        if not law.floor_ratio < law.ceiling_ratio:
            yield Problem(
                (*place, "floor_ratio"), f"= {law.floor_ratio:g} is not below ceiling_ratio = {law.ceiling_ratio:g}"
            )
        elif not law.floor_ratio <= 1 <= law.ceiling_ratio:
            yield Problem(
                (*place, "balance"),
                f"lies outside its own box: floor_ratio = {law.floor_ratio:g} and ceiling_ratio = "
                f"{law.ceiling_ratio:g} are multiples of it and must enclose 1",
            )
    if isinstance(law, BandLaw):
        facts = model_facts(config.model.path)
        if facts and facts.vocab_size and law.low >= math.log(facts.vocab_size):
            yield Problem(
                (*place, "low"),
                f"= {law.low:g} nats can't be reached: {facts.vocab_size} tokens have an entropy of at most "
                f"{math.log(facts.vocab_size):.2f}",
            )


def _targets(config: "RunConfig") -> Iterator[Problem]:
    """Of the laws whose target is a number of nats, or a share of H_0."""
    law, place = config.entropy.law, ("entropy", "law")
    if isinstance(law, BangBangLaw | PiLaw) and not law.floor < law.ceiling:
        yield Problem((*place, "floor"), f"= {law.floor:g} is not below ceiling = {law.ceiling:g}")
    elif isinstance(law, BangBangLaw):
        if not law.floor <= law.initial <= law.ceiling:
            yield Problem(
                (*place, "initial"),
                f"= {law.initial:g} is outside the box floor = {law.floor:g} … ceiling = {law.ceiling:g}",
            )
        if law.delta >= law.ceiling - law.floor:
            yield Problem(
                (*place, "delta"),
                f"= {law.delta:g} crosses the box floor = {law.floor:g} … ceiling = {law.ceiling:g} in one step",
            )
    if isinstance(law, PiLaw | SampleBalanceLaw) and law.proportional == law.integral == 0:
        yield Problem((*place, "proportional"), "and integral are both 0: the law would never act")
    if isinstance(law, BangBangLaw | PiLaw | QuadraticLaw | SampleBalanceLaw):
        facts = model_facts(config.model.path)
        if facts and facts.vocab_size and law.target >= math.log(facts.vocab_size):
            yield Problem(
                (*place, "target"),
                f"= {law.target:g} nats can't be reached: {facts.vocab_size} tokens have an entropy of at most "
                f"{math.log(facts.vocab_size):.2f}",
            )


def _entropy(config: "RunConfig") -> Iterator[Problem]:
    estimator, tokens = config.entropy.estimator, config.entropy.tokens
    facts = model_facts(config.model.path)
    vocabulary = facts.vocab_size if facts else 0
    if isinstance(estimator, ClampedEntropy):
        share, place = estimator.drop_fraction, ("entropy", "estimator", "drop_fraction")
        dropped = math.floor(share * vocabulary)
        if share == 0 or (vocabulary and dropped == 0):
            of = f" of {vocabulary} tokens" if vocabulary else ""
            yield Problem(place, f'= {share:g} drops none{of}: raise it, or say kind = "full"')
        elif vocabulary and dropped >= vocabulary - 1:
            yield Problem(place, f"= {share:g} leaves one of {vocabulary} tokens, which has no entropy: lower it")
    if isinstance(estimator, TopKEntropy):
        place = ("entropy", "estimator", "k")
        if estimator.k == 1:
            yield Problem(place, "= 1: a single token has no entropy; raise it")
        elif vocabulary and estimator.k >= vocabulary:
            yield Problem(place, f'= {estimator.k} is all {vocabulary} tokens: lower it, or say kind = "full"')
    if isinstance(tokens, SmoothedTokens) and not tokens.low < tokens.high:
        yield Problem(("entropy", "tokens", "low"), f"= {tokens.low:g} is not below high = {tokens.high:g}")


def _filter(config: "RunConfig") -> Iterator[Problem]:
    batch = config.batch
    if batch.filter != "none" and int((batch.refill - 1) * batch.prompts) == 0:
        yield Problem(
            ("batch", "refill"),
            f"= {batch.refill:g} times {batch.prompts} prompts leaves no group to filter: raise it, or say "
            'filter = "none"',
        )


def _learner(config: "RunConfig") -> Iterator[Problem]:
    learner = config.learner
    if learner.transport != "shared_memory":
        place, chosen = ("learner", "transport"), f'= "{learner.transport}"'
        if learner.device == "cpu":
            what = "shares a GPU's memory" if learner.transport == "ipc" else "goes from GPU to GPU"
            yield Problem(place, f'{chosen} {what}, but device = "cpu" has none: use "shared_memory"')
        if isinstance(config.rollout.engine, SimulatedSettings):
            yield Problem(place, f'{chosen} needs a real engine; the simulated one reads "shared_memory"')
    rollout = config.rollout
    if rollout.actors > rollout.max_actors:
        yield Problem(("rollout", "max_actors"), f"= {rollout.max_actors} is less than actors = {rollout.actors}")
    if learner.transport == "nccl" and rollout.actors > 1:
        yield Problem(
            ("rollout", "actors"),
            f'= {rollout.actors}, but [learner] transport = "nccl" sends to the GPUs of one actor: lower it and '
            'raise [rollout.engine] tensor_parallel, or use "shared_memory"',
        )
    yield from _one_gpu(config)
    if 0 < learner.drift_stop <= learner.drift_alarm:
        yield Problem(
            ("learner", "drift_stop"),
            f"= {learner.drift_stop:g} is not above drift_alarm = {learner.drift_alarm:g}: the run would stop before "
            "it warns; raise it, or say 0 to never stop",
        )
    yield from _ranks(config)
    if learner.truncated == "penalise" and learner.truncation_penalty == 0:
        yield Problem(
            ("learner", "truncation_penalty"),
            '= 0 penalises nothing, but truncated = "penalise"; to keep them say "keep"',
        )


def _ratio(config: "RunConfig") -> Iterator[Problem]:
    learner, batch = config.learner, config.batch
    if learner.minibatches > batch.prompts:
        yield Problem(
            ("learner", "minibatches"),
            f"= {learner.minibatches} optimizer steps of at least one group each, but [batch] prompts = "
            f"{batch.prompts}: lower it",
        )
    if learner.proximal == "behaviour" and learner.sequence_mask > 0:
        yield Problem(
            ("learner", "sequence_mask"),
            f"= {learner.sequence_mask:g} rejects samples by |log π_prox − log μ|, and proximal = "
            '"behaviour" makes that 0: use proximal = "learner", or 0 for no mask',
        )


def _ranks(config: "RunConfig") -> Iterator[Problem]:
    learner, run = config.learner, config.run
    if learner.ranks > 1 and learner.device != "cpu" and learner.gpus != 1:
        yield Problem(
            ("learner", "gpus"),
            f"= {learner.gpus:g} for each of ranks = {learner.ranks}, which take whole GPUs, one each: set 1, or use "
            'CPUs (device = "cpu")',
        )
    if learner.ranks > 1 and learner.transport == "ipc":
        yield Problem(
            ("learner", "ranks"),
            f'= {learner.ranks}, but transport = "ipc" is for one GPU that the learner shares with one actor: use '
            '"shared_memory"',
        )
    if learner.ranks > 1 and learner.rank_seconds >= run.stall_seconds:
        yield Problem(
            ("learner", "rank_seconds"),
            f"= {learner.rank_seconds:g} is not below [run] stall_seconds = {run.stall_seconds:g}: the run would end "
            "before it is known which rank the others wait for",
        )


def _adapters(config: "RunConfig") -> Iterator[Problem]:
    lora, facts = config.learner.weights, model_facts(config.model.path)
    if isinstance(lora, Lora) and facts and facts.hidden_size and lora.rank > facts.hidden_size:
        yield Problem(
            ("learner", "weights", "rank"),
            f"= {lora.rank} is above the model's width of {facts.hidden_size}: no matrix has so many directions. Lower "
            'it, or train all weights (kind = "all")',
        )


def _one_gpu(config: "RunConfig") -> Iterator[Problem]:
    """CUDA IPC reaches the processes of the learner's own GPU."""
    if config.learner.transport != "ipc":
        return
    actors, engine = config.rollout.actors, config.rollout.engine
    shared = '[learner] transport = "ipc" is for one GPU that the learner shares with one actor'
    if actors > 1:
        yield Problem(("rollout", "actors"), f'= {actors}, but {shared}: lower it, or use "shared_memory"')
    if isinstance(engine, VllmSettings) and engine.tensor_parallel > 1:
        yield Problem(
            ("rollout", "engine", "tensor_parallel"),
            f'= {engine.tensor_parallel}, but {shared}: lower it, or use "shared_memory"',
        )
