"""Quantisation-aware fine-tuning: a trained network learns to live with the rounding of int8.

torch's own fake-quantise operators on the network with its batch norms folded: weights symmetric
per channel or tensor, activations per tensor, both as quantize.py stores them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional
from torch.nn.utils import parametrize

from nas.arch import Quantization
from nas.train import one_cycle, one_thread

EPOCHS, BATCH, LEARNING_RATE = 4, 32, 5e-4


def fine_tuned(
    network: nn.Module, quantization: Quantization, features: Tensor, seed: int
) -> nn.Module:
    """A copy of `network`, batch norms folded, trained on to give the network's own answers
    although its weights and activations are rounded.

    `features` [N, C, F, T] are the training split's; the float network's outputs are the target
    (Hinton et al. 2015), so that no label is learned by heart. The copy is plain float: quantise
    it as any other.
    """
    student = fuse(network.eval())  # a traced copy
    layers = _rounded_layers(student, quantization)
    per_channel = quantization.weights == "channel"
    hooks = [layer.register_forward_pre_hook(_round_input) for layer in layers]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", _RoundedWeights(per_channel))
    with one_thread():
        _train(student, network, features, torch.Generator().manual_seed(seed))
    for layer, hook in zip(layers, hooks, strict=True):
        hook.remove()
        parametrize.remove_parametrizations(layer, "weight")
    return student


def _rounded_layers(network: nn.Module, quantization: Quantization) -> list[nn.Conv2d]:
    """The convolutions that int8 rounds: all but stem and head if those are kept in float, and
    but 1x1 depthwise ones."""
    convs = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    kept = convs[:1] if quantization.keep_float in ("stem", "both") else []
    kept += convs[-1:] if quantization.keep_float in ("head", "both") else []
    kept += [layer for layer in convs if layer.groups > 1 and layer.kernel_size == (1, 1)]
    return [layer for layer in convs if layer not in kept]


def _train(student: nn.Module, parent: nn.Module, features: Tensor, random: Any) -> None:
    optimizer = torch.optim.AdamW(student.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    steps = EPOCHS * math.ceil(len(features) / BATCH)
    orders = [torch.randperm(len(features), generator=random) for _ in range(EPOCHS)]
    batches = [rows for order in orders for rows in torch.split(order, BATCH)]
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * one_cycle(step / steps)
        x = features[rows].float().contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            wanted = parent(x).softmax(1)
        loss = functional.cross_entropy(student(x), wanted)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _round_input(_: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    """The input in 256 steps over its range in this batch, zero among them."""
    x = inputs[0]
    low, high = x.detach().amin().clamp(max=0), x.detach().amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    return torch.fake_quantize_per_tensor_affine(x, scale, (-low / scale).round().int(), 0, 255)


class _RoundedWeights(nn.Module):
    """Weights in 255 steps, symmetric about zero."""

    def __init__(self, per_channel: bool) -> None:
        super().__init__()
        self.per_channel = per_channel

    def forward(self, weight: Tensor) -> Tensor:
        most = weight.detach().abs()
        if not self.per_channel:
            scale = (most.amax() / 127).clamp(min=1e-12)
            return torch.fake_quantize_per_tensor_affine(
                weight, scale, torch.tensor(0, dtype=torch.int32), -127, 127
            )
        scales = (most.amax((1, 2, 3)) / 127).clamp(min=1e-12)
        zeros = torch.zeros_like(scales, dtype=torch.int32)
        return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)
