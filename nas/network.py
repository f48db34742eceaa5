"""Architecture -> nn.Module -> ONNX. Input [N, C, F, T] features, output [N, classes] logits."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from torch import Tensor, nn

from nas.arch import Architecture, Head, Pair, Stage
from nas.blocks import conv, conv_norm, make_block, pool

OPSET = 17


class Network(nn.Sequential):
    """Stages, then the head: [N, C, F, T] -> [N, classes]."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = layer(x)
        return x.flatten(1)


def build(architecture: Architecture, classes: int) -> Network:
    """The untrained network for this architecture and number of classes."""
    channels, *size = architecture.front_end.shape
    layers: list[nn.Module] = []
    shape = (size[0], size[1])
    for stage in architecture.stages:
        layers.append(_stage(stage, channels, shape))
        channels, shape = after(stage, channels, shape)
    layers.append(_head(architecture.head, channels, shape[0], classes))
    return Network(*layers)


def after(stage: Stage, channels: int, size: Pair) -> tuple[int, Pair]:
    """Channels and size (F, T) of the feature map behind the stage."""
    steps = zip(size, stage.stride, strict=True)
    if stage.down == "stride" and stage.kind != "skip":
        frequency, time = (-(-width // step) for width, step in steps)
    else:
        frequency, time = (max(1, width // step) for width, step in steps)
    return stage.channels or channels, (frequency, time)


def _stage(stage: Stage, channels: int, size: Pair) -> nn.Sequential:
    layers = []
    stride = stage.stride if stage.down == "stride" else (1, 1)
    for _ in range(stage.repeats):
        layers.append(make_block(stage, channels, stride, size))
        if stage.down == "stride":
            size = after(stage, channels, size)[1] if stride != (1, 1) else size
        channels, stride = stage.channels, (1, 1)
    if stage.down != "stride":
        layers.append(pool(stage.down, stage.stride, size))
    return nn.Sequential(*layers)


def _head(head: Head, channels: int, bands: int, classes: int) -> nn.Sequential:
    drop = [nn.Dropout(head.dropout / 100)] if head.dropout else []
    average = nn.AdaptiveAvgPool2d(1)
    if head.kind == "map":
        return nn.Sequential(*drop, conv_norm(channels, classes), average)
    layers: list[nn.Module] = []
    if head.kind == "bc":
        kernel = (min(5, bands), 5)
        layers.append(
            nn.Conv2d(channels, channels, kernel, padding=(0, 2), groups=channels, bias=False)
        )
    if head.channels:
        layers.append(conv_norm(channels, head.channels, act="relu"))
    last = conv(head.channels or channels, classes, bias=True)
    return nn.Sequential(*layers, average, *drop, last)


def to_onnx(network: nn.Module, shape: tuple[int, int, int]) -> onnx.ModelProto:
    """Float32 ONNX graph of the network in evaluation mode: 'input' [1, C, F, T] -> 'output'.

    Uses the TorchScript exporter: it is 10 to 40 times faster than the dynamo one here, prints
    nothing and folds batch norm.
    """
    buffer = io.BytesIO()
    network = network.eval().float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter is deprecated, and warns of what it folds
        torch.onnx.export(
            network,
            (torch.zeros(1, *shape),),
            buffer,  # type: ignore[arg-type]  # a file object is accepted, and documented
            dynamo=False,
            opset_version=OPSET,
            input_names=["input"],
            output_names=["output"],
        )
    return onnx.load_model_from_string(buffer.getvalue())
