"""Small data sets of noisy tones: class folders that a tiny network learns in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

RATE_HZ = 8000
CLASSES_HZ = {"high": 2500, "low": 300, "mid": 900}

# The first stage strides, so that even a large network of this space trains in a second.
SPACE = """
name = "tiny"
description = "a few small networks"

[[front_end]]
sample_rate_hz = [8000]
fft = [256]
hop = [128]
mels = [20]

[[stages]]
kind = ["conv"]
stride = ["2x2"]
channels = [4, 8, 16]

[[stages]]
kind = ["ds", "ir"]
stride = ["2x2"]
expansion = [2, 4]
channels = [8, 16, 24, 512]

[quantization]
scheme = ["float32", "float16", "int8"]
"""


def write_tones(root: Path, clips_per_class: int = 20, seconds: float = 0.5) -> Path:
    """Class folders high, low and mid under `root`."""
    random = np.random.default_rng(0)
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    for label, hz in CLASSES_HZ.items():
        (root / label).mkdir(parents=True)
        for i in range(clips_per_class):
            tone = np.sin(2 * np.pi * hz * random.uniform(0.6, 1.7) * time)
            noise = random.normal(0, 0.4, len(time))
            soundfile.write(root / label / f"{i:02}.wav", 0.2 * (tone + noise), RATE_HZ)
    return root
