"""What a configuration would do, in one vocabulary: prompts, samples, tokens, optimizer steps, staleness."""

import math
from collections.abc import Iterator
from pathlib import Path

from entrostat.config import RunConfig
from entrostat.contradictions import ModelFacts, model_facts
from entrostat.learner.objective import chunk_tokens
from entrostat.methods import Line, entropy_lines, filter_lines, loss_lines, method_notes
from entrostat.parameters import adapter_count, parameter_count
from entrostat.preflight import VERSIONS_IN_MEMORY
from entrostat.protocol.entropy_settings import AnchoredLaw, BandLaw, ThermostatLaw
from entrostat.protocol.learner_settings import AllWeights, Lora
from entrostat.protocol.settings import MixedResults, SimulatedSettings, Uniform, VllmSettings
from entrostat.scores import tries
from entrostat.task_lines import Look, look, prompts_together, verifier_words

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}
# Of one parameter in training. float32: the weight, its gradient, AdamW's two moments; bfloat16: the weight, and its
# master, the master's gradient and the moments in float32.
TRAINED_BYTES = {"float32": 4 + 4 + 8, "bfloat16": 2 + 4 + 4 + 8}
PACKING = {
    "auto": "padding included, or packed where a GPU's kernel takes them and that makes fewer",
    "on": "packed without padding",
    "off": "padding included",
}
SHARED_GPU_SHARE = 0.8  # of its memory: an engine that takes more leaves a learner beside it nothing


def explain(config: RunConfig) -> str:
    """The effective configuration in words and numbers; loads no model, and says what isn't on this machine."""
    facts = model_facts(config.model.path)
    trained = [look(task) for task in config.tasks]
    unseen = [look(task) for task in config.evaluation.tasks]
    sections = {
        f"run {config.run.name}": _run(config),
        "policy": _policy(config, facts),
        "prompts": _prompts(config, trained),
        "one optimizer step": _step(config),
        "staleness": _staleness(config),
        "entropy": entropy_lines(config.entropy),
        "verdicts": _verdicts(config),
        "evaluation": _evaluation(config, unseen),
        "memory": _memory(config, facts),
    }
    parts = [_section(title, list(lines)) for title, lines in sections.items()]
    notes = [
        *_notes(config, facts),
        *_few(config, trained),
        *(note for one in (*trained, *unseen) for note in one.notes),
    ]
    if notes:
        parts.append("worth knowing\n" + "\n".join(f"  · {note}" for note in notes))
    return "\n\n".join(parts)


def _section(title: str, lines: list[Line]) -> str:
    width = max(len(what) for what, _ in lines)
    return "\n".join([title, *(f"  {what:<{width}}  {about}" for what, about in lines)])


def _run(config: RunConfig) -> Iterator[Line]:
    run, checkpoint = config.run, config.checkpoint
    yield "optimizer steps", f"{run.steps:,}"
    yield "directory", f"{Path(run.directory, run.name)}, seen from where the command is called"
    yield "seed", f"{run.seed}"
    kept = f"the newest {checkpoint.keep}" if checkpoint.keep > 1 else "the newest"
    yield "checkpoints", f"every {checkpoint.every_steps} steps and at the end; {kept} and the best are kept"
    yield "stalled", f"after {run.stall_seconds:g} s without an optimizer step: exit code 3"


def _policy(config: RunConfig, facts: ModelFacts | None) -> Iterator[Line]:
    yield "model", config.model.path
    yield "numbers", config.model.dtype
    if facts is None:
        yield "on this machine", "no: nothing is said below about its size and context"
        return
    parameters = parameter_count(config.model.path)
    if parameters:
        yield "parameters", f"{parameters:,}"
    yield (
        "vocabulary",
        f"{facts.vocab_size:,} tokens: an entropy of at most {math.log(max(facts.vocab_size, 1)):.2f} nats",
    )
    yield "context", f"{_context(config, facts):,} tokens, prompt and response together"


def _prompts(config: RunConfig, looks: list[Look]) -> Iterator[Line]:
    yield from _task_lines(looks)
    yield from _drawing(config)
    prompts = prompts_together(looks)
    if prompts is None:
        yield "together", "not known: a table is not on this machine"
        return
    if not prompts:
        yield "together", "none"
        return
    yield "together", f"{prompts:,} prompts"
    epochs = config.run.steps * config.batch.prompts / prompts
    order = "shuffled in each epoch" if config.batch.shuffle else "in their order"
    more = "; what is passed over or filtered comes on top" if _draws_more(config) else ""
    yield "epochs", f"{epochs:.2f}: each prompt is sampled {epochs:.1f} times on average, {order}{more}"


def _draws_more(config: RunConfig) -> bool:
    return isinstance(config.batch.sampling, MixedResults) or config.batch.filter != "none"


def _drawing(config: RunConfig) -> Iterator[Line]:
    """How prompts are drawn: the tasks' shares, and who is passed over."""
    weights = [task.weight for task in config.tasks]
    if any(weights):
        shares = ", ".join(f"task {number} {weight / sum(weights):.1%}" for number, weight in enumerate(weights, 1))
        yield "turns", f"by the tasks' weights: {shares}; within a task every prompt has equally many"
    else:
        yield "turns", "every prompt once an epoch"
    match config.batch.sampling:
        case Uniform():
            yield "drawn", "every prompt when its turn comes"
        case MixedResults(floor=floor):
            yield (
                "drawn",
                f"by how likely the {config.rollout.samples_per_prompt} samples of a group differ in reward, as the "
                f"controller estimates it: always at a pass rate of 1/2, in {floor:.0%} of its turns at 0 or 1; else a "
                "prompt is passed over until its next turn",
            )


def _task_lines(looks: list[Look]) -> Iterator[Line]:
    for number, one in enumerate(looks, start=1):
        first, *others = one.lines
        yield f"task {number}", first
        for line in others:
            yield "", line


def _step(config: RunConfig) -> Iterator[Line]:
    rollout, learner = config.rollout, config.learner
    samples = config.batch.prompts * rollout.samples_per_prompt
    yield "prompts", f"{config.batch.prompts:,}"
    yield "samples", f"{samples:,}: a group of {rollout.samples_per_prompt} for each prompt"
    longest = samples * rollout.max_response_tokens
    yield (
        "tokens",
        f"at most {longest:,}: {rollout.max_response_tokens:,} in a response, drawn at T = {rollout.temperature:g}",
    )
    yield (
        "micro-batches",
        f"of at most {learner.microbatch_tokens:,} tokens, {PACKING[learner.packing]}; one update after all of them",
    )
    if learner.ranks > 1:
        yield (
            "ranks",
            f"{learner.ranks} processes make it together, each with its part of the weights; one waits for another at "
            f"most {learner.rank_seconds:g} s",
        )
    yield "trained", _trained(config)
    yield "learning rate", _learning_rate(config)
    yield "truncated responses", _truncated(config)
    yield from filter_lines(config)
    yield from loss_lines(learner)
    if learner.kl_coefficient:
        kept = "which stays in memory" if isinstance(learner.weights, AllWeights) else "the same without its adapters"
        yield "KL", f"{learner.kl_coefficient:g} × KL to the starting policy, {kept}"


def _trained(config: RunConfig) -> str:
    match config.learner.weights:
        case AllWeights():
            return "all weights"
        case Lora() as lora:
            where = "all linear layers" if isinstance(lora.targets, str) else ", ".join(lora.targets)
            count = adapter_count(config.model.path, lora)
            numbers = f"{count:,} numbers in " if count else ""
            published = "merged into whole weights" if lora.publish == "merged" else "as an adapter for vLLM"
            return (
                f"{numbers}low-rank adapters (LoRA) of rank {lora.rank}, α = {lora.alpha}, beside {where}; published "
                f"{published}"
            )


def _learning_rate(config: RunConfig) -> str:
    learner = config.learner
    warm = f"after {learner.warmup_steps} steps of warm-up, " if learner.warmup_steps else ""
    if learner.schedule == "constant":
        return f"{learner.lr:g}, {warm}constant"
    return f"{learner.lr:g}, {warm}{learner.schedule} down to {learner.lr * learner.final_lr_ratio:g}"


def _truncated(config: RunConfig) -> str:
    match config.learner.truncated:
        case "mask":
            return "cut by the length limit: their tokens teach nothing; their reward counts in the group's mean"
        case "penalise":
            return f"cut by the length limit: their reward is lowered by {config.learner.truncation_penalty:g}"
        case "keep":
            return "cut by the length limit: treated like any other"


def _staleness(config: RunConfig) -> Iterator[Line]:
    rollout = config.rollout
    most = rollout.max_staleness
    meaning = "on-policy: actors wait for each update" if most == 0 else "actors sample on while the learner updates"
    yield "most versions", f"{most}: {meaning}"
    groups = rollout.actors * rollout.groups_in_flight
    yield "in flight", f"at most {groups:,} groups, on {rollout.actors} actor{'s' if rollout.actors > 1 else ''}"
    yield "leases", f"end after {rollout.lease_seconds:g} s without a sign of life; the prompt is then sampled again"


def _verdicts(config: RunConfig) -> Iterator[Line]:
    # In the tasks' order, each once.
    kinds = dict.fromkeys(verifier_words(task.verifier) for task in (*config.tasks, *config.evaluation.tasks))
    verifier = config.verifier
    yield (
        "by",
        f"{' and '.join(kinds)}, in {verifier.processes} process{'es' if verifier.processes > 1 else ''}",
    )
    yield "deadline", f"{verifier.deadline_seconds:g} s for one response; a hanging one is killed and worth 0"
    yield "warning", f"when more than {verifier.alarm_share:.0%} of verdicts are unparsable, time-outs or errors"


def _evaluation(config: RunConfig, looks: list[Look]) -> Iterator[Line]:
    evaluation = config.evaluation
    if not evaluation.tasks:
        yield "none", "add [[evaluation.tasks]] to measure the policy on unseen prompts"
        return
    yield from _task_lines(looks)
    between = f", and every {evaluation.every_steps} steps" if evaluation.every_steps else ""
    yield "when", f"before and after the run{between}"
    count = prompts_together(looks)
    together = "" if count is None else f", {count * evaluation.samples:,} together"
    shown = ", ".join(str(k) for k in tries(evaluation.samples, evaluation.k))
    yield "samples", f"{evaluation.samples} per prompt{together}: pass@k and maj@k, k = {shown}"


def _memory(config: RunConfig, facts: ModelFacts | None) -> Iterator[Line]:
    parameters, published = parameter_count(config.model.path) if facts else 0, 0
    lora = config.learner.weights
    size = BYTES[config.model.dtype]
    if parameters:
        trained, published = parameters * TRAINED_BYTES[config.model.dtype], parameters
        if isinstance(lora, Lora):
            adapters = adapter_count(config.model.path, lora)
            trained = parameters * size + adapters * TRAINED_BYTES[config.model.dtype]
            published = adapters if lora.publish == "adapter" else parameters
        ranks = config.learner.ranks
        parted = f", {_size(trained / ranks)} on each of {ranks} ranks" if ranks > 1 else ""
        yield "weights", f"{_size(parameters * size)}; with gradients and AdamW's moments {_size(trained)}{parted}"
    if config.learner.transport == "shared_memory" and parameters:
        yield "shared memory", f"{_size(VERSIONS_IN_MEMORY * published * size)} for weights on their way to the actors"
    if config.learner.transport == "ipc":
        room = f" ({_size(VERSIONS_IN_MEMORY * published * size)})" if parameters else ""
        yield (
            "weights' way",
            f"ipc: the engine reads the learner's memory on the same GPU, which holds {VERSIONS_IN_MEMORY} more copies "
            f"of what is published{room}; each is copied to the host only for its checksums",
        )
    if config.learner.transport == "nccl":
        room = f" ({_size(published * size)})" if parameters else ""
        yield (
            "weights' way",
            f"nccl: one more copy of what is published{room} on the learner's GPU, and two on each of the actor's; not "
            "run on GPUs yet",
        )
    if facts and facts.vocab_size:
        rows = chunk_tokens(config.learner, facts.vocab_size, on_gpu=config.learner.device != "cpu")
        rows = min(rows, config.learner.microbatch_tokens)
        yield (
            "logits at once",
            f"{_size(rows * facts.vocab_size * 4)}: {rows:,} tokens × {facts.vocab_size:,}, float32",
        )
    match config.rollout.engine:
        case VllmSettings() as engine:
            cache = f"{engine.kv_cache_gib} GiB for keys and values on a CPU"
            yield "engine", f"vLLM: {engine.memory_share:.0%} of a GPU's memory, or {cache}"
        case SimulatedSettings():
            yield "engine", "simulated: no model is loaded for sampling"


def _notes(config: RunConfig, facts: ModelFacts | None) -> Iterator[str]:
    rollout, law = config.rollout, config.entropy.law
    groups = rollout.actors * rollout.groups_in_flight
    if groups < config.batch.prompts:
        rounds = math.ceil(config.batch.prompts / groups)
        yield f"only {groups} of a step's {config.batch.prompts} groups are in flight at once: {rounds} rounds a step"
    if isinstance(law, BandLaw | AnchoredLaw):
        yield "a purely integral law is undamped where entropy falls by itself: expect it to swing around its target"
    yield from method_notes(config)
    yield from _short(config)
    engine = rollout.engine
    if (
        config.learner.transport == "ipc"
        and isinstance(engine, VllmSettings)
        and engine.memory_share > SHARED_GPU_SHARE
    ):
        yield f"the engine takes {engine.memory_share:.0%} of the GPU it shares with the learner: lower memory_share"
    if facts is None:
        yield f"the model {config.model.path} is not in a folder here: a run would look for it on the Hugging Face hub"


def _few(config: RunConfig, looks: list[Look]) -> Iterator[str]:
    """Tasks that can't have the share their weight says: a prompt is in one group at a time."""
    weights = [task.weight for task in config.tasks]
    if not any(weights) or config.run.deterministic:  # which leases by places alone
        return
    flying = config.rollout.actors * config.rollout.groups_in_flight
    for number, (weight, one) in enumerate(zip(weights, looks, strict=True), start=1):
        share = weight / sum(weights)
        if one.count and one.count < share * flying:
            yield (
                f"task {number} has {one.count} prompts for a share of {share:.1%} of {flying} groups in flight: a "
                "prompt is in one at a time, and the other tasks get what is left of its turns"
            )


def _short(config: RunConfig) -> Iterator[str]:
    """What so few steps leave out: a trial run may, a real one should not."""
    steps, law = config.run.steps, config.entropy.law
    if isinstance(law, ThermostatLaw) and law.anchor_orders >= steps:
        yield f"{law.anchor_orders} orders measure H_0: in {steps} steps the law never acts"
    if isinstance(law, BandLaw) and law.warmup_steps >= steps:
        yield f"the band law warms up for {law.warmup_steps} steps: in {steps} steps it never acts"
    if config.learner.warmup_steps >= steps:
        yield f"lr warms up for {config.learner.warmup_steps} steps: in {steps} steps it is never reached"
    if config.evaluation.every_steps > steps:
        yield f"an evaluation every {config.evaluation.every_steps} steps: in {steps} steps only before and after"


def _context(config: RunConfig, facts: ModelFacts) -> int:
    engine = config.rollout.engine
    chosen = engine.max_model_tokens if isinstance(engine, VllmSettings) else 0
    return chosen or facts.max_position_embeddings


def _size(count: float) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / (1 << 20):.0f} MiB"
