"""One training loop, for the proxy and the full training alike.

On the CPU: channels-last, bfloat16 autocast, one contiguous tensor, one thread per process.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio import transforms

from nas.record import Proxy


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keeps torch to one thread: on a busy machine two were seen to take 20 times longer than one
    for a tiny network, and one thread always adds in the same order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def autocast() -> AbstractContextManager[None]:
    """The number format of training: bfloat16 where torch holds it safe."""
    return torch.autocast("cpu", torch.bfloat16)


def train(
    network: nn.Module, features: Tensor, labels: Tensor, classes: int, proxy: Proxy, seed: int
) -> Iterator[int]:
    """Trains the network in place; yields the number of finished epochs after each of them.

    features: [N, C, F, T], labels: [N] int64. Stop asking for epochs to stop early.
    AdamW (Loshchilov & Hutter 2019) with a one-cycle schedule, label smoothing, changes of level,
    SpecAugment masks (Park et al. 2019) and, if asked for, mixup (Zhang et al. 2018).
    """
    random = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)
    features = features.to(torch.bfloat16)
    parameters = _weight_decay_groups(network, proxy.weight_decay)
    optimizer = torch.optim.AdamW(parameters, lr=proxy.learning_rate, fused=True)
    batches = math.ceil(len(features) / proxy.batch)
    masks = _masks(proxy, features.shape)
    targets = functional.one_hot(labels, classes).float()
    for epoch in range(proxy.epochs):
        network.train()
        order = torch.randperm(len(features), generator=random)
        for step, rows in enumerate(torch.split(order, proxy.batch)):
            if len(rows) < 2:  # batch norm cannot train on a single clip
                continue
            progress = (epoch * batches + step) / (proxy.epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = proxy.learning_rate * one_cycle(progress)
            x = masks(_gain(features[rows], proxy.gain, random))
            x, y = _mixup(x, targets[rows], proxy.mixup, random)
            with autocast():
                logits = network(x.contiguous(memory_format=torch.channels_last))
            loss = functional.cross_entropy(
                logits.float(), y, label_smoothing=proxy.label_smoothing
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        yield epoch + 1


def one_cycle(progress: float, warm_up: float = 0.15) -> float:
    """Share of the peak learning rate at `progress` in 0..1: linear warm-up, cosine to zero."""
    if progress < warm_up:
        return (progress + 1e-3) / (warm_up + 1e-3)
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


@torch.no_grad()
def predict(network: nn.Module, features: Tensor, batch: int = 64) -> np.ndarray:
    """Float32 logits [N, classes] of the network in evaluation mode."""
    network.eval()
    outputs = []
    for part in torch.split(features, batch):
        x = part.float().contiguous(memory_format=torch.channels_last)
        outputs.append(network(x).float())
    return torch.cat(outputs).numpy()


def _weight_decay_groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    """Norms and biases are not decayed."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]


def _masks(proxy: Proxy, shape: torch.Size) -> nn.Module:
    bands, frames = shape[2], shape[3]
    return nn.Sequential(
        transforms.FrequencyMasking(min(proxy.frequency_mask, bands // 2), iid_masks=True),
        transforms.TimeMasking(max(1, int(proxy.time_mask_share * frames)), iid_masks=True),
    )


def _gain(x: Tensor, most: float, random: torch.Generator) -> Tensor:
    """Every second clip louder or softer: on log-mel, a constant; deltas do not change with the
    level. The other clips keep it, as it may tell classes apart."""
    shift = (2 * torch.rand(len(x), 1, 1, generator=random) - 1) * most
    shift[::2] = 0
    x[:, 0] += shift.to(x.dtype)
    return x


def _mixup(x: Tensor, y: Tensor, alpha: float, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Blends each clip with another; the share is drawn from Beta(alpha, alpha)."""
    if alpha <= 0:
        return x, y
    rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=random)))
    share = torch.from_numpy(rng.beta(alpha, alpha, len(x)).astype(np.float32))
    other = torch.randperm(len(x), generator=random)
    a = share[:, None, None, None].to(x.dtype)
    return a * x + (1 - a) * x[other], share[:, None] * y + (1 - share[:, None]) * y[other]
