"""Search spaces: everything they hold is valid, counted exactly and found again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from choosing import EveryTrial, RandomTrial

from nas.arch import Architecture, parse
from nas.cost import estimate
from nas.errors import UserError
from nas.network import build
from nas.published import published
from nas.shipped import names
from nas.space import SearchSpace, load_space, space_from_toml

TINY = """
name = "tiny"
description = "few enough to enumerate"
depth = [2, 3]

[[front_end]]
sample_rate_hz = [16000]
fft = [512]
hop = [256]
mels = [20, 32]
deltas = [0, 1]

[[front_end]]
sample_rate_hz = [8000]
fft = [256]
hop = [128]
mels = [20]

[[stages]]
kind = ["conv"]
stride = ["1x1", "2x2"]
down = ["stride", "max"]
channels = [8, 16]
residual = [0, 1]

[[stages]]
kind = ["ds", "ir", "skip"]
repeats = [1, 2]
stride = ["1x1", "2x2"]
down = ["stride", "avg"]
expansion = [2, 3]
channels = [8, 16]
residual = [0, 1]

[[stages]]
kind = ["ds"]
channels = [8]
residual = [0, 1]

[head]
kind = ["gap", "map", "bc"]
channels = [0, 16]

[quantization]
scheme = ["float32", "int8"]
weights = ["channel", "tensor"]
keep_float = ["none", "stem"]
qat = [0, 1]
"""


def test_the_count_is_that_of_an_enumeration_and_no_two_choices_give_one_architecture():
    space = space_from_toml(TINY, "tiny.toml")
    trial, found, choices = EveryTrial(), set(), 0
    while not trial.exhausted:
        found.add(str(space.sample(trial, clip_s=1.0)))
        choices += 1
        trial.next()
    assert choices == len(found) == space.count()


@pytest.mark.parametrize("samples", [50, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", names("spaces"))
def test_samples_build_count_and_are_found_again(name, samples):
    space = load_space(name)
    for seed in range(samples):
        trial = RandomTrial(seed)
        architecture = space.sample(trial, clip_s=1.0)
        assert space.choices_of(architecture) == trial.chosen
        assert estimate(architecture, classes=10).parameters > 0


@pytest.mark.parametrize("figure", ["file_bytes", "ram_bytes", "macs"])
@pytest.mark.parametrize("name", ["small", "mcu", "saleem2022"])
def test_the_smallest_network_is_no_larger_than_any_sampled_one(name, figure):
    def size(architecture: Architecture) -> int:
        return getattr(estimate(architecture, classes=10), figure)

    space = load_space(name)
    smallest = space.smallest(size, clip_s=1.0)
    assert space.contains(smallest)
    assert size(smallest) <= min(size(space.sample(RandomTrial(s), 1.0)) for s in range(60))


def test_of_a_tiny_space_the_smallest_network_is_found_exactly():
    space, trial, sizes = space_from_toml(TINY, "tiny.toml"), EveryTrial(), []

    def size(architecture: Architecture) -> int:
        return estimate(architecture, classes=4).ram_bytes

    while not trial.exhausted:
        sizes.append(size(space.sample(trial, clip_s=0.2)))
        for _ in range(97):  # a sample of the combinations; all of them take a minute
            trial.next()
    assert size(space.smallest(size, clip_s=0.2)) <= min(sizes)


@pytest.mark.parametrize(
    "space, held",
    [
        ("lim2021", ["lim2021-base", "lim2021-ds", "lim2021-ir"]),
        ("saleem2022", ["saleem2022"]),
        ("mobile", ["cpmobile-dcase2024"]),
        ("bcresnet", [f"bcresnet-{n}" for n in ("1", "1.5", "2", "3", "6", "8")]),
        ("kws", ["dscnn-mlperf-tiny", "dscnn-s"]),
    ],
)
def test_a_space_holds_the_published_networks_that_it_is_named_for(space, held):
    loaded = load_space(space)
    for name in held:
        assert loaded.contains(parse(published()[name].architecture)), name


@pytest.mark.parametrize("name", [n for n in sorted(published()) if "micronet-ad" not in n])
def test_the_broad_space_holds_every_published_network_up_to_widths(name):
    space = load_space("scenes")
    assert space.contains(_with_widths_of(space, parse(published()[name].architecture)))


def _with_widths_of(space: SearchSpace, architecture: Architecture) -> Architecture:
    stages = [
        replace(stage, channels=space.stages[i].channels[0])
        for i, stage in enumerate(architecture.stages)
    ]
    head = architecture.head
    if head.channels:
        head = replace(head, channels=max(space.head.channels))
    return replace(architecture, stages=tuple(stages), head=head)


def test_a_network_that_is_not_in_the_space_is_not_found():
    assert not load_space("mcu").contains(parse(published()["saleem2022"].architecture))


@pytest.mark.parametrize(
    "old, new, said",
    [
        ('kind = ["conv"]', 'kind = ["convv"]', "stage 0 (the stem is 0): unknown kind 'convv'"),
        ("channels = [8]", "", "stage 2 (the stem is 0): kind 'ds' needs a list of 'channels'"),
        ("hop = [256]", "hop = [600]", "hop is 600, allowed is 8 to 512"),
        ("mels = [20, 32]", "mels = [20, 20]", "'mels' repeats a choice"),
        ('stride = ["1x1", "2x2"]', 'stride = ["1", "2x2"]', "'stride' holds '1'"),
        ("depth = [2, 3]", "depth = [2, 4]", "'depth' is [2, 4]; allowed is 1 to 3"),
        ("expansion = [2, 3]", "expansion = [2, 30]", "expansion is 30"),
        ("fft = [256]", "ftt = [256]", "ftt"),
        ('scheme = ["float32", "int8"]', 'scheme = ["int4"]', "unknown quantisation 'int4'"),
        ('kind = ["gap", "map", "bc"]', 'kind = ["flat"]', "unknown head 'flat'"),
        (
            "sample_rate_hz = [8000]\nfft = [256]\nhop = [128]",
            "sample_rate_hz = [16000]\nfft = [512]\nhop = [256]",
            "two [[front_end]] alternatives hold a front end in common",
        ),
    ],
)
def test_a_mistake_in_a_space_gets_one_sentence_that_names_file_and_key(old, new, said):
    assert old in TINY
    with pytest.raises(UserError) as error:
        space_from_toml(TINY.replace(old, new, 1), "tiny.toml")
    assert "tiny" in str(error.value)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("gain = [-1.0]", "training: 'gain' holds -1.0: Expected `float` >= 0.0"),
        ("time_mask_share = [0.5, 1.5]", "training: 'time_mask_share' holds 1.5"),
        ("mixup = [0.1, 0.1]", "training: 'mixup' repeats a choice"),
        ("mixupp = [0.1]", "mixupp"),
        ("mixup = 0.1", "training.mixup"),
    ],
)
def test_a_mistake_in_the_training_table_is_named(table, said):
    with pytest.raises(UserError) as error:
        space_from_toml(f"{TINY}\n[training]\n{table}\n", "tiny.toml")
    assert said in str(error.value)
    assert "tiny.toml" in str(error.value)


def test_the_recipe_that_a_space_chooses_is_drawn_from_its_lists():
    space = space_from_toml(f"{TINY}\n[training]\ngain = [0, 2]\nmixup = [0.3]\n", "tiny.toml")
    drawn = [space.sample_training(RandomTrial(seed)) for seed in range(20)]
    assert {tuple(training.items()) for training in drawn} == {
        (("mixup", 0.3), ("gain", 0.0)),
        (("mixup", 0.3), ("gain", 2.0)),
    }
    assert space.count() == space_from_toml(TINY, "tiny.toml").count()


def test_a_built_network_gives_one_logit_per_class_and_clip():
    import torch

    space = load_space("scenes")
    for seed in range(20):
        architecture = space.sample(RandomTrial(seed), clip_s=0.3)
        network = build(architecture, classes=3).eval()
        assert network(torch.zeros(2, *architecture.front_end.shape)).shape == (2, 3)
