"""One `nn.Module` per block kind of `nas.arch.KINDS`, and the layers that they share.

Every block maps [N, C, F, T] to [N, C', F', T'] (F: frequency, T: time) and takes the stage that
it belongs to, its input channels, its own stride (the stage's for the first block, else 1x1) and
its input size (F, T). Strided maps keep ceil(F / stride), as with 'same' padding; pooled ones
floor(F / stride), at least 1.
"""

from __future__ import annotations

import sys
from typing import cast

import torch
from torch import Tensor, nn

from nas.arch import KINDS, Pair, Stage

_ACTIVATION = {"relu": nn.ReLU, "relu6": nn.ReLU6, "hswish": nn.Hardswish, "silu": nn.SiLU}


def make_block(stage: Stage, channels_in: int, stride: Pair, size: Pair) -> nn.Module:
    """One block of the stage's kind."""
    block = getattr(sys.modules[__name__], KINDS[stage.kind].block)
    return cast(nn.Module, block(stage, channels_in, stride, size))


def round_channels(channels: float, multiple: int = 8) -> int:
    """Nearest multiple, never more than 10 % below (MobileNet's make_divisible)."""
    rounded = max(multiple, int(channels + multiple / 2) // multiple * multiple)
    return rounded + multiple if rounded < 0.9 * channels else rounded


def activation(name: str) -> nn.Module:
    """A new activation of one of the kinds in `nas.arch.ACTIVATIONS`."""
    return _ACTIVATION[name]()


def conv(
    channels_in: int,
    channels: int,
    kernel: Pair = (1, 1),
    stride: Pair = (1, 1),
    groups: int = 1,
    dilation: int = 1,
    bias: bool = False,
) -> nn.Module:
    """Convolution with 'same' padding; dilation acts in time. An even kernel pads more behind."""
    spans = (kernel[0] - 1, (kernel[1] - 1) * dilation)
    before = (spans[0] // 2, spans[1] // 2)
    odd = all(span % 2 == 0 for span in spans)
    layer = nn.Conv2d(
        channels_in,
        channels,
        kernel,
        stride,
        padding=before if odd else 0,
        dilation=(1, dilation),
        groups=groups,
        bias=bias,
    )
    if odd:
        return layer
    after = (spans[0] - before[0], spans[1] - before[1])
    return nn.Sequential(nn.ZeroPad2d((before[1], after[1], before[0], after[0])), layer)


def conv_norm(
    channels_in: int,
    channels: int,
    kernel: Pair = (1, 1),
    stride: Pair = (1, 1),
    groups: int = 1,
    act: str | None = None,
    dilation: int = 1,
) -> nn.Sequential:
    """Convolution, batch norm and, if named, an activation."""
    layers = [conv(channels_in, channels, kernel, stride, groups, dilation)]
    layers.append(nn.BatchNorm2d(channels))
    return nn.Sequential(*layers, *([activation(act)] if act else []))


def pool(down: str, stride: Pair, size: Pair) -> nn.Module:
    """Max or average pooling by `stride`, no wider than the map."""
    kernel = (min(stride[0], size[0]), min(stride[1], size[1]))
    return nn.MaxPool2d(kernel) if down == "max" else nn.AvgPool2d(kernel)


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al. 2018) with MobileNetV3's hard sigmoid."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        squeezed = round_channels(channels / reduction)
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Hardsigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.gate(x))


class SubSpectralNorm(nn.Module):
    """Batch norm per frequency sub-band (Chang et al. 2021).

    The norm follows a 1x1 depthwise convolution whose weights are fixed to one: exporters fold
    the two into one convolution, which quantises and fuses where a lone norm stays in float.
    The number of sub-bands is the largest divisor of `bands` that is not above `subbands`.
    """

    ones: Tensor

    def __init__(self, channels: int, bands: int, subbands: int) -> None:
        super().__init__()
        count = max(s for s in range(1, min(subbands, bands) + 1) if bands % s == 0)
        self.grouped = (channels * count, bands // count)
        self.plain = (channels, bands)
        self.register_buffer("ones", torch.ones(channels * count, 1, 1, 1), persistent=False)
        self.norm = nn.BatchNorm2d(channels * count)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.shape[3]
        x = x.reshape(-1, *self.grouped, frames)
        if not self.training:
            x = nn.functional.conv2d(x, self.ones, groups=self.grouped[0])
        return cast(Tensor, self.norm(x)).reshape(-1, *self.plain, frames)


class GlobalResponseNorm(nn.Module):
    """Global response normalisation (ConvNeXt V2, Woo et al. 2023), as in CP-Mobile."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        energy = (x * x).mean((2, 3), keepdim=True).sqrt()
        share = energy / (energy.mean(1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


def _extras(stage: Stage, channels: int) -> list[nn.Module]:
    """Squeeze-excite and spatial dropout, where the stage has them."""
    layers: list[nn.Module] = []
    if stage.squeeze:
        layers.append(SqueezeExcite(channels, stage.squeeze))
    if stage.dropout:
        layers.append(nn.Dropout2d(stage.dropout / 100))
    return layers


class _Residual(nn.Module):
    """Adds the input where the shape allows and the block wants it."""

    def __init__(self, body: nn.Module, residual: bool) -> None:
        super().__init__()
        self.body = body
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.body(x))
        return x + y if self.residual else y


class Conv(_Residual):
    """Plain convolution, batch norm, activation; optional residual."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        c, act = stage.channels, stage.activation
        body = [conv_norm(channels_in, c, stage.kernel, stride, act=act), *_extras(stage, c)]
        same = channels_in == c and stride == (1, 1)
        super().__init__(nn.Sequential(*body), bool(stage.residual) and same)


class DepthwiseSeparable(_Residual):
    """Depthwise, then 1x1 convolution, each with norm and activation (MobileNetV1, Howard et al.
    2017; DS-CNN, Zhang et al. 2017)."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        c, act = stage.channels, stage.activation
        depthwise = conv_norm(channels_in, channels_in, stage.kernel, stride, channels_in, act)
        body = [depthwise, conv_norm(channels_in, c, act=act), *_extras(stage, c)]
        same = channels_in == c and stride == (1, 1)
        super().__init__(nn.Sequential(*body), bool(stage.residual) and same)


class Factorised(_Residual):
    """A kx1 convolution over frequency, then 1xk over time (Inception v3, Szegedy et al. 2016)."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        c, act = stage.channels, stage.activation
        over_f = conv_norm(channels_in, c, (stage.kernel[0], 1), (stride[0], 1), act=act)
        over_t = conv_norm(c, c, (1, stage.kernel[1]), (1, stride[1]), act=act)
        same = channels_in == c and stride == (1, 1)
        body = nn.Sequential(over_f, over_t, *_extras(stage, c))
        super().__init__(body, bool(stage.residual) and same)


class InvertedResidual(_Residual):
    """Expand, depthwise, linear projection, shortcut where shapes agree (MobileNetV2, Sandler et
    al. 2018); squeeze-excite after the depthwise (MobileNetV3)."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        c, act = stage.channels, stage.activation
        wide = round_channels(channels_in * stage.expansion)
        body = [
            *([conv_norm(channels_in, wide, act=act)] if wide != channels_in else []),
            conv_norm(wide, wide, stage.kernel, stride, wide, act),
            *_extras(stage, wide),
            conv_norm(wide, c),
        ]
        super().__init__(nn.Sequential(*body), channels_in == c and stride == (1, 1))


class FusedInvertedResidual(_Residual):
    """Full expanding convolution, linear projection, shortcut (EfficientNet-EdgeTPU, Gupta &
    Tan 2019; EfficientNetV2)."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        wide = round_channels(channels_in * stage.expansion)
        body = [
            conv_norm(channels_in, wide, stage.kernel, stride, act=stage.activation),
            *_extras(stage, wide),
            conv_norm(wide, stage.channels),
        ]
        same = channels_in == stage.channels and stride == (1, 1)
        super().__init__(nn.Sequential(*body), same)


class CPMobile(nn.Module):
    """CP-Mobile block (Schmid et al., DCASE 2023 Task 1): inverted residual whose shortcut is
    average-pooled where it strides, activation after the sum, optional response norm after it."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        super().__init__()
        c, act = stage.channels, stage.activation
        wide = round_channels(channels_in * stage.expansion)
        self.body = nn.Sequential(
            conv_norm(channels_in, wide, act=act),
            conv_norm(wide, wide, stage.kernel, stride, wide, act),
            conv_norm(wide, c),
            *_extras(stage, c),
        )
        self.residual = channels_in == c
        pool = stride != (1, 1) and self.residual
        self.shortcut = nn.AvgPool2d(3, stride, 1) if pool else nn.Identity()
        norm = [GlobalResponseNorm(c)] if stage.response_norm else []
        self.after = nn.Sequential(*norm, activation(act))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.residual:
            y = y + self.shortcut(x)
        return cast(Tensor, self.after(y))


class DoubleSeparable(nn.Sequential):
    """Two separable convolutions, each with norm and activation, then spatial dropout: the
    VGG-like block described by Saleem et al. 2022 (a separable convolution is a depthwise and a
    1x1 convolution with nothing between, as in Keras)."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        c, act = stage.channels, stage.activation
        super().__init__(
            conv(channels_in, channels_in, stage.kernel, stride, channels_in),
            conv_norm(channels_in, c, act=act),
            conv(c, c, stage.kernel, (1, 1), c),
            conv_norm(c, c, act=act),
            *_extras(stage, c),
        )


class BroadcastedResidual(nn.Module):
    """BC-ResNet block (Kim et al. 2021): a frequency-depthwise convolution with sub-spectral
    norm; its mean over frequency goes through a dilated time-depthwise convolution and is
    broadcast back. A block that changes the width has no identity shortcut."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        super().__init__()
        c = stage.channels
        self.identity = channels_in == c and stride == (1, 1)
        widen = [] if channels_in == c else [conv_norm(channels_in, c, act="relu")]
        bands = -(-size[0] // stride[0])
        self.over_frequency = nn.Sequential(
            *widen,
            conv(c, c, (stage.kernel[0], 1), stride, c),
            SubSpectralNorm(c, bands, stage.subbands),
        )
        self.mean = nn.AvgPool2d((bands, 1))
        self.over_time = nn.Sequential(
            conv_norm(c, c, (1, stage.kernel[1]), (1, 1), c, stage.activation, stage.dilation),
            nn.Conv2d(c, c, 1, bias=False),
            nn.Dropout2d(stage.dropout / 100),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.over_frequency(x)
        y = y + self.over_time(self.mean(y))
        return torch.relu(y + x if self.identity else y)


class Skip(nn.Sequential):
    """Nothing, or max pooling by the stride: the choice that makes a network shallower."""

    def __init__(self, stage: Stage, channels_in: int, stride: Pair, size: Pair) -> None:
        super().__init__(*([] if stage.stride == (1, 1) else [pool("max", stage.stride, size)]))
