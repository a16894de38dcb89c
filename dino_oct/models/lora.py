"""LoRA on a student's attention (Hu et al. 2022), by PEFT: few numbers learn, and the sums are an ordinary network.

A layer becomes ``base_layer`` + ``lora_B`` · ``lora_A``; the base stays as it is.
"""

import torch
from torch import nn

from dino_oct.errors import InputError
from dino_oct.models.official import Tensors

_ATTENTION = r".*\.attn\.(qkv|proj|q_proj|k_proj|v_proj)"


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """Let only adapters of this rank on the attention of every block learn; they start at 0.

    Raises:
        InputError: PEFT is not installed, or the backbone has no attention.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise InputError("model.lora_rank needs PEFT: pip install peft") from None
    try:
        inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=_ATTENTION), backbone)
    except ValueError:
        raise InputError(
            f"model.lora_rank {rank}: {type(backbone).__name__} has no attention to adapt; unset it"
        ) from None


def has_adapters(network: nn.Module) -> bool:
    """Whether ``add_adapters`` was applied to a part of it."""
    return any(".lora_A." in name for name, _ in network.named_parameters())


def merged_state(network: nn.Module) -> Tensors:
    """The tensors of a network with the names and values that it has without adapters: each base with its sum."""
    state = network.state_dict()
    if not has_adapters(network):
        return state
    sums = {
        f"{name}.weight": (layer.base_layer.weight + layer.get_delta_weight("default")).detach()
        for name, layer in network.named_modules()
        if hasattr(layer, "get_delta_weight")
    }
    plain = {name.replace(".base_layer.", "."): t for name, t in state.items() if ".lora_" not in name}
    return {**plain, **sums}


def adapter_state(network: nn.Module) -> Tensors:
    """What ``merged_state`` does not keep: the bases and the adapters."""
    return {name: tensor for name, tensor in network.state_dict().items() if ".base_layer." in name or ".lora_" in name}


@torch.no_grad()
def merged_parameters(student: nn.Module, teacher: nn.Module) -> list[torch.Tensor]:
    """The student's parameters, sums where there are adapters, in the order of the teacher's, which has none."""
    if not has_adapters(student):
        return list(student.parameters())
    merged = merged_state(student)
    return [merged[name] for name, _ in teacher.named_parameters()]
