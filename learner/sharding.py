"""A policy laid out over several ranks with FSDP2: each holds a part of every weight and gathers a layer for its turn.

fully_shard works by hooks on a module's forward. The learner never calls the whole model's: it reads hidden states and
multiplies them by the head's weight where it needs logits. So the model gets a method `states`, the decoder's forward,
which FSDP2 takes for the model's own. Embedding, last norm and head are one unit, the model itself, which stays
gathered from its forward to the end of the backward pass: hence the head's weight, tied or not, is whole wherever it is
read between the two.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from entrostat.learner.policy import Policy
from entrostat.learner.ranks import Ranks

HALF = (torch.bfloat16, torch.float16)


def shard(policy: Policy, ranks: Ranks) -> Policy:
    """The same policy with its weights parted among the ranks; alone, the policy itself.

    A policy that is trained in half precision is held in float32 and gathered in half, so that rounding loses no
    update; gradients are added up over the ranks in float32. A frozen policy stays as it is.
    """
    if ranks.alone:
        return policy
    model, mesh = policy.model, init_device_mesh(ranks.device.type, (ranks.count,))
    mixed = MixedPrecisionPolicy()
    trained = any(weight.requires_grad for weight in model.parameters())
    if trained and policy.dtype in HALF:
        mixed = MixedPrecisionPolicy(param_dtype=policy.dtype, reduce_dtype=torch.float32)
    for unit in (*_layers(model), model):
        if mixed.param_dtype is not None:
            unit.float()
        fully_shard(unit, mesh=mesh, mp_policy=mixed)
        # The terms are divided by the tokens of all ranks already: gradients are summed, not averaged.
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)
    model.states = lambda **given: model.get_decoder()(**given)
    register_fsdp_forward_method(model, "states")
    return replace(policy, ranks=ranks)


def gather(policy: Policy) -> dict[str, Tensor]:
    """Every weight under its name in the model, on the first rank; nothing on the others.

    Alone they are the model's own tensors. Of a sharded policy copies are gathered on the host, unit by unit in the
    dtype that is computed in, so that no device holds more than a layer beside its part. Tied weights are one tensor
    under each of their names.
    """
    if policy.ranks.alone:
        return dict(policy.model.state_dict())
    model, found = policy.model, dict[str, Tensor]()
    copies: dict[int, Tensor] = {}
    units: list[tuple[str, Any]] = [each for each in model.named_modules() if isinstance(each[1], FSDPModule)]
    for path, unit in units:
        unit.unshard()
        for name, weight in unit.named_parameters(prefix=path, remove_duplicate=False):
            if policy.ranks.first and not isinstance(weight, DTensor):  # those are of units inside
                if id(weight) not in copies:
                    copies[id(weight)] = weight.detach().to("cpu", copy=True)
                found[name] = copies[id(weight)]
        unit.reshard()
        copies.clear()
    if not policy.ranks.first:
        return {}
    held: dict[str, Tensor] = model.state_dict()
    return {name: found[name] if name in found else held[name] for name in held}  # buffers are whole everywhere


def _layers(model: Any) -> list[Any]:
    """The model's repeated blocks, as transformers names them; none where it names none, and the model is one unit."""
    names = getattr(model, "_no_split_modules", None) or ()
    found = [module for module in model.modules() if type(module).__name__ in names]
    return found[::-1]  # a block inside another comes first
