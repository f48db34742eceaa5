"""What a search begins with: published networks as choices of a space, in other formats too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from optuna.trial import FixedTrial

from nas.arch import parse
from nas.cost import estimate
from nas.published import published
from nas.shipped import names
from nas.space import load_space
from nas.warm import FORMATS, beginnings, ladder, literature


def size(architecture):
    return estimate(architecture, 10).file_bytes


def size_if_small(architecture):
    return size(architecture) if within(64)(architecture) else None


def within(kb):
    return lambda architecture: estimate(architecture, 10).file_bytes <= kb * 1024


@pytest.mark.parametrize("space", names("spaces"))
@pytest.mark.parametrize("clip_s", [1.0, 5.0])
def test_the_choices_sample_to_the_network_that_they_stand_for(space, clip_s):
    space = load_space(space)
    for text, choices in beginnings(literature(), space, clip_s, within(64)).items():
        assert str(space.sample(FixedTrial(choices), clip_s)) == text
        assert within(64)(parse(text))


def test_a_network_keeps_its_number_format_if_it_fits_and_takes_a_smaller_one_if_not():
    space = load_space("bcresnet")
    network = parse(published()["bcresnet-2"].architecture)
    (roomy,) = beginnings([network], space, 1.0, within(10_000))
    (tight,) = beginnings([network], space, 1.0, within(64))
    assert roomy == str(network) and roomy.endswith("/float32")
    assert tight.endswith(FORMATS[0]) and tight.rsplit("/", 1)[0] == roomy.rsplit("/", 1)[0]
    assert beginnings([network], space, 1.0, within(10)) == {}


def test_the_clip_length_becomes_that_of_the_recordings():
    network = parse(published()["bcresnet-1"].architecture)
    (text,) = beginnings([network], load_space("bcresnet"), 5.0, within(64))
    assert parse(text) == replace(network, front_end=replace(network.front_end, clip_s=5.0))


def test_a_network_outside_the_space_is_left_out():
    network = parse(published()["bcresnet-1"].architecture)
    assert beginnings([network], load_space("small"), 1.0, within(64)) == {}


@pytest.mark.parametrize("space", names("spaces"))
def test_a_ladder_doubles_from_step_to_step_up_to_the_budget(space):
    space = load_space(space)
    steps = ladder(space, 1.0, size_if_small, 64 * 1024, seed=0)
    again = ladder(space, 1.0, size_if_small, 64 * 1024, seed=0)
    assert all(map(space.contains, steps)) and steps == again
    sizes = [size(step) for step in steps]
    assert sizes == sorted(sizes) and 16 * 1024 < sizes[-1] <= 64 * 1024
    assert set(steps) != set(ladder(space, 1.0, size_if_small, 64 * 1024, seed=1))


def test_a_ladder_of_a_space_that_cannot_fit_has_no_step():
    assert ladder(load_space("saleem2022"), 1.0, lambda _: None, 500, seed=0) == []
