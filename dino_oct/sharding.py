"""Networks whose tensors are shared out over the processes (FSDP2), for those that are too large to stand in each.

Each process keeps a shard of every tensor, of its gradient and of its optimiser's moments. A block is gathered while it
computes and given back after it. All that follows from shards alone, as AdamW and the teacher's average, works on them.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dino_oct import processes
from dino_oct.errors import InputError

RUNS_ON_CPUS = torch.__version__ >= (2, 14)  # earlier ones fail there, or add gradients up instead of averaging them


def check_can_shard(backbone: nn.Module, device: torch.device) -> None:
    """Raise InputError unless this device can, and the backbone has transformer blocks and neither BatchNorm nor
    parameters of no dimension."""
    if device.type == "cpu" and not RUNS_ON_CPUS:
        raise InputError("run.shard True: without a GPU it needs torch 2.14 or later; leave it out")
    has_statistics = any(isinstance(module, _BatchNorm) for module in backbone.modules())
    if not hasattr(backbone, "blocks") or has_statistics or any(not p.ndim for p in backbone.parameters()):
        raise InputError(
            f"run.shard True: a network is sharded by its transformer blocks, and {type(backbone).__name__} is not a "
            "plain transformer; leave it out"
        )


def shard(network: nn.Module, device: torch.device, reduce: torch.dtype | None = None) -> None:
    """Keep this process's shards of a network's tensors, and put them on its device. Every process must call it.

    The forward pass and the backward pass of each loss are then collective too, and gradients are means over processes.

    Args:
        network: a ``DinoNetwork``, or a backbone of which only ``forward_features`` is called.
        reduce: precision in which gradients are averaged; None: their own.
    """
    mesh = init_device_mesh(device.type, (processes.count(),))
    policy = MixedPrecisionPolicy(reduce_dtype=reduce)  # parameters stay float32, and autocast decides as elsewhere
    has_heads = hasattr(network, "backbone")
    parts = [*network.backbone.blocks, network.head, network.patch_head] if has_heads else [*network.blocks]
    for part in (*filter(None, parts), network):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    if has_heads:
        network.register_forward_hook(_give_back)
    else:
        register_fsdp_forward_method(network, "forward_features")
    # A network gives out views of its results, and nothing is done to them in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)


def _give_back(network: nn.Module, *_: Any) -> None:
    """After a pass without gradients, which no backward pass follows; else the outermost parameters would stay away."""
    if not torch.is_grad_enabled():
        network.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's shard of a tensor, in the same memory; a tensor that is not sharded itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def norms(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The norm of each whole tensor, (N,), the same on every process."""
    of_shards = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors]))
    is_shard = [isinstance(tensor, DTensor) for tensor in tensors]
    if not any(is_shard):
        return of_shards
    whole = processes.total(of_shards.square()).sqrt()
    pairs = zip(is_shard, whole.unbind(), of_shards.unbind(), strict=True)
    return torch.stack([norm if sharded else own for sharded, norm, own in pairs])


def shell_of(network: nn.Module) -> nn.Module:
    """A copy whose parameters have shapes and no values, for ``filled``; taken before the network is sharded."""
    hollow = {id(p): nn.Parameter(p.detach().to("meta"), requires_grad=False) for p in network.parameters()}
    return copy.deepcopy(network, hollow)


@torch.no_grad()
def filled(shell: nn.Module, network: nn.Module, device: torch.device) -> nn.Module:
    """A plain copy of a sharded network, whole on every process. Every process must call it."""
    pairs = zip(shell.parameters(), network.parameters(), strict=True)
    values = {id(empty): nn.Parameter(shards.full_tensor(), requires_grad=False) for empty, shards in pairs}
    return copy.deepcopy(shell, values).to(device)


@torch.no_grad()
def gathered(state: Any) -> Any:
    """A state with whole tensors in the place of shards: on the main process's CPU, None on the others.

    One tensor at a time is whole on a device. Every process must call it.

    Args:
        state: dicts and lists of tensors and other values.
    """
    if isinstance(state, DTensor):
        whole = state.full_tensor()
        return whole.cpu() if dist.get_rank() == 0 else None
    if isinstance(state, Mapping):
        return {name: gathered(value) for name, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def sharded_like(whole: Any, own: Any) -> Any:
    """The shards of a value that is the same on every process, where ``own`` is a sharded tensor of its shape."""
    if not isinstance(own, DTensor) or not isinstance(whole, torch.Tensor) or whole.shape != own.shape:
        return whole
    return distribute_tensor(whole.to(own.device, own.dtype), own.device_mesh, own.placements)


def sharded_state(tensors: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Whole tensors as a network of these names takes them."""
    own = network.state_dict()
    return {name: sharded_like(tensor, own.get(name)) for name, tensor in tensors.items()}


def sharded_moments(state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimiser's state of whole tensors as the optimiser of sharded parameters takes it."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {name: sharded_like(value, parameters[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return state | {"state": moments}
