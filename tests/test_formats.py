"""One training, several number formats: which comes next, and that nothing is trained for it."""

from __future__ import annotations

import msgspec
import pytest
from optuna.trial import FixedTrial
from tones import SPACE, write_tones

from nas.arch import parse
from nas.dataset import load
from nas.formats import next_format, trained_before
from nas.gate import cost_of
from nas.pipeline import Job, evaluate_architecture
from nas.record import Proxy, Trained
from nas.shipped import load_target
from nas.space import space_from_toml
from tests.made_study import complete, inputs

SMALL = space_from_toml(SPACE, "tiny.toml")
NETWORK = (
    "logmel_r8000_t0.5_f256_w256_h128_m20_d0_c1/conv_n1_k3x3_s2x2_c16_relu_q0_g0_p0"
    "/ds_n1_k3x3_s2x2_c512_relu_q0_g0_p0/gap_c0_p0/"
)


def trial(number, scheme, accuracy, in_float):
    architecture = parse(NETWORK + scheme)
    size = cost_of(architecture, inputs()).file_bytes
    made = complete(number, accuracy, size, name=str(architecture))
    return msgspec.structs.replace(made, float_accuracy=in_float)


def proposed(result, *others):
    """The number format that comes after `result` in a study that holds `others` as well."""
    choices = next_format(result, [*others, result], SMALL, inputs(), 0.5)
    if choices is None:
        return None
    network, _, scheme = str(SMALL.sample(FixedTrial(choices), 0.5)).rpartition("/")
    assert f"{network}/" == NETWORK
    return scheme


def test_the_smallest_format_comes_first_and_the_next_one_if_that_lost_accuracy():
    whole = trial(1, "float32", 0.8, in_float=0.8)
    assert proposed(whole) == "int8_channel_none"
    assert proposed(trial(2, "int8_channel_none", 0.7, in_float=0.8), whole) == "float16"
    # one standard error is 0.021 there: 0.02 more is not worth a trial
    assert proposed(trial(2, "int8_channel_none", 0.77, in_float=0.8), whole) == "float16"
    assert proposed(trial(2, "int8_channel_none", 0.78, in_float=0.8), whole) is None


def test_nothing_comes_that_a_smaller_network_would_beat():
    smaller = complete(0, 0.85, 900, name="another")
    whole = trial(1, "float32", 0.8, in_float=0.8)
    assert proposed(whole, smaller) is None
    assert proposed(msgspec.structs.replace(whole, state="stopped")) is None


def test_a_network_is_known_by_all_but_its_format_and_trained_by_the_first():
    whole = msgspec.structs.replace(trial(1, "float32", 0.8, 0.8), training={"mixup": 0.2})
    half = msgspec.structs.replace(trial(2, "float16", 0.8, 0.8), weights_of=1)
    found = trained_before(NETWORK + "int8_channel_none", {"mixup": 0.2}, [whole])
    assert found == Trained(1, "artifacts/1.safetensors")
    assert trained_before(NETWORK + "int8_channel_none", {}, [whole]) is None
    assert trained_before(NETWORK + "float32", {}, [half]) == Trained(1, "artifacts/2.safetensors")
    assert trained_before(NETWORK.replace("c512", "c24") + "float16", {}, [half]) is None


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    data = load(write_tones(tmp_path_factory.mktemp("formats") / "tones"))
    return Job(data, load_target("host"), Proxy(epochs=3))


@pytest.mark.parametrize("scheme", ["int8_channel_none", "float16"])
def test_with_the_weights_of_another_trial_the_file_is_that_of_a_training(scheme, job, tmp_path):
    wanted = parse(NETWORK + scheme)
    evaluate_architecture(parse(NETWORK + "float32"), job, 3, tmp_path / "a")
    before = Trained(4, str(tmp_path / "a.safetensors"))
    taken = evaluate_architecture(wanted, job, 3, tmp_path / "b", before=before)
    trained = evaluate_architecture(wanted, job, 3, tmp_path / "c")
    assert (tmp_path / "b.onnx").read_bytes() == (tmp_path / "c.onnx").read_bytes()
    assert taken.score == trained.score and taken.float_accuracy == trained.float_accuracy
    assert taken.trained_by == 4 and taken.seconds_training < trained.seconds_training


def test_weights_that_are_not_to_be_had_are_trained_again(job, tmp_path):
    gone = Trained(4, str(tmp_path / "gone.safetensors"))
    result = evaluate_architecture(parse(NETWORK + "float16"), job, 3, tmp_path / "a", before=gone)
    assert result.state == "complete" and result.weights_of is None
