"""What one would write first: Optuna's NSGA-II over the same search space, every trial trained in
full, int8 by NNCF's defaults, no look at the size before the training.

    python nsga2.py DATA SPACE MINUTES SEED STORAGE

Any number of processes may share a STORAGE. Features and networks are this project's, so that
only the search differs.
"""

import sys
import time

import nncf
import numpy as np
import onnxruntime
import optuna
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset
from torchaudio import transforms

from nas.dataset import load
from nas.features import compute
from nas.network import build, to_onnx
from nas.space import load_space

EPOCHS, BATCH, LEARNING_RATE = 20, 32, 0.012


def fit(network, features, labels):
    loader = DataLoader(TensorDataset(features, labels), BATCH, shuffle=True, drop_last=True)
    optimizer = torch.optim.AdamW(network.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * len(loader))
    masks = torch.nn.Sequential(
        transforms.FrequencyMasking(8, iid_masks=True),
        transforms.TimeMasking(features.shape[3] // 10, iid_masks=True),
    )
    network.train()
    for _ in range(EPOCHS):
        for x, y in loader:
            loss = functional.cross_entropy(network(masks(x)), y, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def evaluate(trial, data, space):
    architecture = space.sample(trial, data.clip_s)
    features = compute(data, architecture.front_end, splits=("train", "validation"))
    training, validation = features.split("train"), features.split("validation")
    network = build(architecture, len(data.classes))
    x = torch.from_numpy(training.features.astype(np.float32))
    fit(network, x, torch.from_numpy(training.labels))
    clips = nncf.Dataset([{"input": clip[None]} for clip in x[:300].numpy()])
    model = nncf.quantize(to_onnx(network.eval(), architecture.front_end.shape), clips)
    content = model.SerializeToString()
    session = onnxruntime.InferenceSession(content)
    inputs = validation.features.astype(np.float32)
    outputs = np.concatenate([session.run(None, {"input": clip[None]})[0] for clip in inputs])
    return float((outputs.argmax(1) == validation.labels).mean()), len(content) / 1024


def main(data, space, minutes, seed, storage):
    torch.set_num_threads(1)
    data, space, end = load(data), load_space(space), time.monotonic() + 60 * float(minutes)
    study = optuna.create_study(
        storage=storage,
        study_name="plain",
        sampler=optuna.samplers.NSGAIISampler(seed=int(seed)),
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    left_s = end - time.monotonic()
    study.optimize(lambda trial: evaluate(trial, data, space), timeout=left_s, catch=Exception)


if __name__ == "__main__":
    main(*sys.argv[1:])
