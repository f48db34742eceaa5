"""One training loop, for the proxy and the full training alike.

On the CPU: float32, channels-last, one thread per process, and no memory given back between steps.
bfloat16 was slower on most of these networks (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nas.augment import Augmentation
from nas.record import Proxy

TAUGHT = 0.5  # the teachers' share of a label
FEWEST_STEPS = 6  # of an epoch: few recordings are trained on in smaller batches than the recipe's
SMALLEST_BATCH = 8


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


def keep_memory() -> None:
    """Has glibc keep freed memory: by default each feature map of a step is mapped anew and its
    pages are zeroed by the kernel, which was seen to take a third of the time. Does nothing where
    the C library has no such setting."""
    m_trim_threshold, m_mmap_threshold = -1, -3
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(m_mmap_threshold, 1 << 30)
        mallopt(m_trim_threshold, (1 << 31) - 1)


def train(
    network: nn.Module,
    features: Tensor,
    labels: Tensor,
    classes: int,
    proxy: Proxy,
    seed: int,
    teachers: Sequence[nn.Module] = (),
) -> Iterator[int]:
    """Trains the network in place; yields the number of finished epochs after each of them.

    features: [N, C, F, T], which may be mapped from disk; labels: [N] int64. Stop asking for
    epochs to stop early. AdamW (Loshchilov & Hutter 2019) with a one-cycle schedule, label
    smoothing and augmented batches. With `teachers`, trained networks of the same input, half of
    each label is the mean of their answers to the augmented clip (Hinton et al. 2015; Beyer et al.
    2022).
    """
    keep_memory()
    random = torch.Generator().manual_seed(seed)
    network.to(memory_format=torch.channels_last)
    parameters = _weight_decay_groups(network, proxy.weight_decay)
    optimizer = torch.optim.AdamW(parameters, lr=proxy.learning_rate, fused=True)
    batch = min(proxy.batch, max(SMALLEST_BATCH, len(features) // FEWEST_STEPS))
    batches = math.ceil(len(features) / batch)
    bands, frames = features.shape[2:]
    augment = Augmentation(proxy, bands, frames, seed)
    targets = functional.one_hot(labels, classes).float()
    for epoch in range(proxy.epochs):
        network.train()
        order = torch.randperm(len(features), generator=random)
        for step, rows in enumerate(torch.split(order, batch)):
            if len(rows) < 2:  # batch norm cannot train on a single clip
                continue
            progress = (epoch * batches + step) / (proxy.epochs * batches)
            for group in optimizer.param_groups:
                group["lr"] = proxy.learning_rate * one_cycle(progress)
            x, y = augment(features[rows].float(), targets[rows])
            x = x.contiguous(memory_format=torch.channels_last)
            if teachers:
                y = torch.lerp(y, _answers(teachers, x), TAUGHT)
            logits = network(x)
            loss = functional.cross_entropy(logits, y, label_smoothing=proxy.label_smoothing)
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
def _answers(teachers: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Mean class probabilities [N, classes]."""
    return torch.stack([teacher.eval()(x).softmax(1) for teacher in teachers]).mean(0)


@torch.no_grad()
def predict(network: nn.Module, features: Tensor, batch: int = 64) -> np.ndarray:
    """Float32 logits [N, classes] of the network in evaluation mode."""
    network.eval()
    outputs = []
    for part in torch.split(features, batch):
        x = part.float().contiguous(memory_format=torch.channels_last)
        outputs.append(network(x))
    return torch.cat(outputs).numpy()


def _weight_decay_groups(network: nn.Module, decay: float) -> list[dict[str, object]]:
    """Norms and biases are not decayed."""
    matrices = [p for p in network.parameters() if p.ndim > 1]
    vectors = [p for p in network.parameters() if p.ndim <= 1]
    return [
        {"params": matrices, "weight_decay": decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
