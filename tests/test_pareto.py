"""The front, its hypervolume and the one-sentence answer, against independent definitions."""

from __future__ import annotations

import itertools
import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.pareto import (
    answer,
    best_within,
    front,
    front_rows,
    hypervolume,
    kb_text,
    limits_text,
    non_dominated,
    recommended,
    score_of,
    smallest_in_interval,
    three_figures,
)
from nas.record import KB, Budget, StudyRecord, TrialResult
from tests.made_study import complete, inputs, study

BUDGET = Budget(size_bytes=64 * KB)
CONTRACT = (
    "trial architecture accuracy accuracy_low accuracy_high size_kb size_kind file_bytes "
    "parameter_bytes flash_bytes latency_ms latency_kind macs peak_ram_bytes quantization "
    "parameters float_accuracy artifact seconds"
).split()

points = st.lists(
    st.tuples(st.integers(1, 12), st.integers(0, 10)), max_size=12
)  # (KB, accuracy in tenths): small ranges, so that ties happen


def made(pairs: list[tuple[int, int]]) -> list[TrialResult]:
    return [
        complete(i, tenths / 10, kb * KB, latency_ms=1.0, name="a")
        for i, (kb, tenths) in enumerate(pairs)
    ]


def beats(a: TrialResult, b: TrialResult) -> bool:
    """By definition: no worse in both, and better in one or, when equal, earlier."""
    first = (a.file_bytes or 0, -score_of(a).accuracy)
    second = (b.file_bytes or 0, -score_of(b).accuracy)
    no_worse = first[0] <= second[0] and first[1] <= second[1]
    return no_worse and (first != second or a.trial < b.trial)


@given(points)
@settings(deadline=None)
def test_the_front_is_what_no_trial_beats(pairs: list[tuple[int, int]]) -> None:
    results = made(pairs)
    by_definition = [r for r in results if not any(beats(q, r) for q in results)]
    found = front(results, "file_bytes", BUDGET)
    assert sorted(r.trial for r in found) == sorted(r.trial for r in by_definition)
    assert [r.file_bytes for r in found] == sorted(r.file_bytes or 0 for r in found)


def test_the_order_of_the_trials_does_not_matter() -> None:
    results = made([(4, 3), (4, 3), (2, 5), (9, 9), (9, 8), (12, 9)])
    fronts = {
        tuple(r.trial for r in front(order, "file_bytes", BUDGET))
        for order in itertools.permutations(results)
    }
    assert fronts == {(2, 3)}


def test_of_equal_trials_the_earliest_stays() -> None:
    results = made([(5, 5), (5, 5), (5, 5)])
    assert [r.trial for r in front(results[::-1], "file_bytes", BUDGET)] == [0]


def test_exactly_the_budget_fits_and_one_byte_more_does_not() -> None:
    results = [complete(0, 0.5, 64 * KB), complete(1, 0.9, 64 * KB + 1)]
    assert [r.trial for r in front(results, "file_bytes", BUDGET)] == [0]


@pytest.mark.parametrize(
    "budget",
    [
        Budget(size_bytes=64 * KB, latency_ms=1.5),
        Budget(size_bytes=64 * KB, ram_bytes=24 * KB + 10 * KB // 3),
        Budget(size_bytes=64 * KB, macs=10 * KB * 110),
    ],
)
def test_every_limit_counts(budget: Budget) -> None:
    results = [complete(0, 0.5, 10 * KB, latency_ms=1.5), complete(1, 0.9, 11 * KB, latency_ms=1.6)]
    assert [r.trial for r in front(results, "file_bytes", budget)] == [0]


def test_an_unknown_latency_does_not_meet_a_latency_limit() -> None:
    unknown = msgspec.structs.replace(complete(0, 0.9, 10 * KB), latency=None)
    assert front([unknown], "file_bytes", BUDGET)
    assert not front([unknown], "file_bytes", Budget(size_bytes=64 * KB, latency_ms=5.0))


def test_only_complete_trials_are_on_the_front() -> None:
    record = study(400)
    found = front(record.trials, "file_bytes", BUDGET)
    assert len({r.state for r in record.trials}) == 5
    assert {r.state for r in found} == {"complete"}


def test_the_size_that_counts_is_the_one_the_budget_names() -> None:
    result = complete(0, 0.9, 64 * KB)  # its parameters are three quarters, its flash 20 KB more
    assert front([result], "parameter_bytes", Budget(size_bytes=48 * KB))
    assert not front([result], "flash_bytes", BUDGET)


def test_a_front_over_another_cost_need_not_be_the_front_over_size() -> None:
    small_slow, large_fast = complete(0, 0.9, 9 * KB, 5.0), complete(1, 0.8, 10 * KB, 2.0)
    results = [small_slow, large_fast]
    assert front(results, "file_bytes", BUDGET) == [small_slow]
    assert non_dominated(results, lambda r: r.latency.latency_ms if r.latency else 0) == [
        large_fast,
        small_slow,
    ]


@given(points, st.integers(1, 14))
@settings(deadline=None)
def test_best_within_is_the_most_accurate_then_smallest_that_fits(
    pairs: list[tuple[int, int]], kb: int
) -> None:
    fits = [r for r in made(pairs) if (r.file_bytes or 0) <= kb * KB]
    found = best_within(made(pairs), "file_bytes", kb)
    key = [(-score_of(r).accuracy, r.file_bytes or 0, r.trial) for r in fits]
    assert (found.trial if found else None) == (min(key)[2] if key else None)


@given(points)
@settings(deadline=None, max_examples=50)
def test_hypervolume_is_the_mean_best_accuracy_over_the_doublings(
    pairs: list[tuple[int, int]],
) -> None:
    """moocore's area against a sum over a fine grid of sizes."""
    pairs_bytes = [(kb * KB, tenths / 10) for kb, tenths in pairs]
    steps = 4000
    sizes = [KB * 2 ** (6 * (i + 0.5) / steps) for i in range(steps)]
    best = [max((a for s, a in pairs_bytes if s <= size), default=0.0) for size in sizes]
    assert hypervolume(pairs_bytes, BUDGET) == pytest.approx(sum(best) / steps, abs=2e-3)


def test_hypervolume_has_its_two_ends() -> None:
    assert hypervolume([], BUDGET) == 0.0
    assert hypervolume([(KB, 1.0)], BUDGET) == pytest.approx(1.0)
    assert hypervolume([(64 * KB, 1.0)], BUDGET) == 0.0
    assert hypervolume([(65 * KB, 1.0)], BUDGET) == 0.0


def test_hypervolume_works_for_a_budget_below_two_kb() -> None:
    # Half a KB to one KB is the axis then, and sqrt(2) of the low end is its middle.
    assert hypervolume([(KB / math.sqrt(2), 0.8)], Budget(size_bytes=KB)) == pytest.approx(0.4)


def test_a_new_point_never_lowers_the_hypervolume() -> None:
    pairs = [(r.file_bytes or 0, score_of(r).accuracy) for r in study(200).trials if r.score]
    values = [hypervolume(pairs[:n], BUDGET) for n in range(0, len(pairs), 10)]
    assert values == sorted(values)
    assert values[-1] > values[1]


def test_the_recommended_network_is_within_one_standard_error_of_the_best() -> None:
    # 400 clips at 90 %: one standard error is sqrt(0.9 * 0.1 / 400) = 1.5 points.
    results = [complete(0, 0.884, 10 * KB), complete(1, 0.886, 20 * KB), complete(2, 0.9, 60 * KB)]
    assert recommended(results).trial == 1
    # The 95 % interval is 1.96 times as wide, so it reaches further down.
    assert smallest_in_interval(results).trial == 0


def test_the_recommended_of_a_single_network_is_that_network() -> None:
    assert recommended([complete(7, 0.5, KB)]).trial == 7


def test_the_answer_is_the_sentence_of_the_documentation() -> None:
    results = [
        complete(41, 0.873, round(38.2 * KB), latency_ms=1.9),
        complete(57, 0.877, round(60.2 * KB), latency_ms=2.5),
    ]
    assert answer(results, inputs(64)) == (
        "Ship trial 41: 87.3 % (84.0-90.6) at 38.2 KB and 1.90 ms; the next better costs 22.0 KB "
        "more for 0.4 points, within noise."
    )


def test_the_answer_says_what_a_smaller_network_would_lose() -> None:
    said = answer([complete(1, 0.6, 8 * KB), complete(2, 0.9, 32 * KB)], inputs(64))
    assert said.startswith("Ship trial 2: 90.0 %")
    assert said.endswith("the next smaller saves 24.0 KB and loses 30.0 points.")


def test_the_answer_says_when_there_is_only_one() -> None:
    said = answer([complete(3, 0.6, 8 * KB)], inputs(64))
    assert said.endswith("no other network measured within the budget is smaller or better.")


def test_the_answer_names_the_smallest_when_nothing_fits() -> None:
    said = answer([complete(1, 0.9, 90 * KB), complete(2, 0.8, 70 * KB)], inputs(64))
    assert said == (
        "Nothing to ship: no complete trial fits the budget of 64 KB; the smallest, trial 2, "
        "takes 70.0 KB."
    )


def test_the_answer_names_the_limits_when_only_another_one_fails() -> None:
    said = answer([complete(1, 0.9, 9 * KB, latency_ms=7)], inputs(64, latency_ms=5))
    assert said == "Nothing to ship: of 1 complete trials none meets all the limits (64 KB, 5 ms)."


def test_the_answer_before_the_first_trial_promises_nothing() -> None:
    assert answer([], inputs(64)) == "Nothing to ship yet: no trial has finished."
    failed = TrialResult(architecture="a", state="failed", reason="x")
    assert answer([failed], inputs(64)).endswith("none of the 1 trials is complete.")


def test_an_estimate_is_called_one() -> None:
    result = complete(1, 0.9, 9 * KB, latency_ms=7)
    assert result.latency
    guessed = msgspec.structs.replace(
        result, latency=msgspec.structs.replace(result.latency, latency_kind="estimated")
    )
    flash = msgspec.structs.replace(inputs(64), size_kind="flash_bytes")
    assert "at an estimated 29.0 KB of flash and an estimated 7.00 ms" in answer([guessed], flash)


def test_the_rows_have_the_keys_of_the_contract() -> None:
    for row in front_rows(study(100)):
        assert set(CONTRACT) <= set(row)
        assert row["size_kb"] * KB == pytest.approx(row["file_bytes"])
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]


def test_every_trial_has_a_row_with_its_state_and_the_same_keys() -> None:
    record = study(300)
    rows = front_rows(record, all_trials=True)
    assert [row["trial"] for row in rows] == [r.trial for r in record.trials]
    assert len({tuple(row) for row in rows}) == 1
    assert all(row["reason"] for row in rows if row["state"] != "complete")


def test_a_trial_that_failed_before_its_cost_has_a_row() -> None:
    broken = TrialResult(architecture="a/b/c/int8_channel_none", state="failed", reason="x")
    (row,) = front_rows(StudyRecord("s", inputs(), [broken]), all_trials=True)
    assert (row["size_kb"], row["accuracy"], row["latency_kind"]) == (None, None, "none")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.42, "0.420"),
        (8.6, "8.60"),
        (9.999, "10.0"),
        (38.2, "38.2"),
        (99.96, "100"),
        (1234, "1234"),
    ],
)
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert three_figures(value) == text
    assert kb_text(value * KB) == text


def test_limits_read_as_they_were_given() -> None:
    budget = Budget(size_bytes=64 * KB, latency_ms=5, ram_bytes=256 * KB, macs=10_000_000)
    assert limits_text(budget) == "64 KB, 5 ms, 256 KB of RAM, 10 million MACs"
