"""Data sets as they lie on disk: layouts, splits without leaks, bad files, bad inputs."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from conftest import Tone
from hypothesis import given, settings
from hypothesis import strategies as st

from nas.clips import Clip
from nas.dataset import Dataset, describe, load
from nas.errors import UserError
from nas.splits import with_splits

# layouts


def class_folders(root: Path, tone: Tone, clips: int = 6, classes: str = "ab") -> Path:
    for label in classes:
        for i in range(clips):
            tone(root / label / f"{label}{i}.wav")
    return root


def table(path: Path, header: str, rows: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def splits(dataset: Dataset) -> dict[str, str | None]:
    return {clip.path: clip.split for clip in dataset.clips}


def test_class_folders_are_split_alike_wherever_they_lie(tmp_path: Path, tone: Tone) -> None:
    here = load(class_folders(tmp_path / "here", tone, clips=10))
    shutil.copytree(tmp_path / "here", tmp_path / "there" / "again")
    there = load(tmp_path / "there" / "again")
    assert here.layout == "class folders"
    assert here.classes == ("a", "b")
    assert splits(here) == splits(there)
    assert here.fingerprint == there.fingerprint
    assert Counter((c.label, c.split) for c in here.clips) == {
        (label, split): n
        for label in "ab"
        for split, n in (("train", 6), ("validation", 2), ("test", 2))
    }


def test_folders_named_after_splits_are_splits(tmp_path: Path, tone: Tone) -> None:
    for split, clips in (("train", 4), ("val", 2), ("test", 1)):
        class_folders(tmp_path / split, tone, clips)
    dataset = load(tmp_path)
    assert dataset.classes == ("a", "b")
    assert describe(dataset).splits == {"train": 8, "validation": 4, "test": 2}
    assert dataset.folds == ()


def test_a_missing_validation_split_is_taken_out_of_training(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path / "train", tone, 10)
    class_folders(tmp_path / "test", tone, 3)
    dataset = load(tmp_path)
    assert describe(dataset).splits == {"train": 16, "validation": 4, "test": 6}
    assert all(c.path.startswith("test/") for c in dataset.clips if c.split == "test")


def test_a_manifest_is_read_from_its_folder_or_its_path(tmp_path: Path, tone: Tone) -> None:
    for i in range(6):
        tone(tmp_path / f"{i}.wav", seconds=2)
    split = ["train", "train", "Validation", "val", "test", "test"]
    rows = [f"{i}.wav,{'xy'[i % 2]},{split[i]},speaker{i},0.5,1.5" for i in range(6)]
    path = table(tmp_path / "any.csv", "filename,label,split,group,start,end", rows)
    dataset = load(tmp_path)
    assert dataset == load(path)
    assert dataset.layout == "csv manifest"
    assert dataset.clip_s == 1
    assert {c.duration_s for c in dataset.clips} == {1.0}
    assert [c.split for c in dataset.clips] == [
        *["train"] * 2,
        *["validation"] * 2,
        *["test"] * 2,
    ]
    assert describe(dataset).groups == [f"speaker{i}" for i in range(6)]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        (["a.wav"], "line 2: 1 values, but the header has 5 columns"),
        (["a.wav,x,,0,1", "a.wav,,,0,1"], "line 3: column 'label' is empty"),
        (["a.wav,x,trian,0,1"], "line 2: split is 'trian', allowed are train, validation and test"),
        (["a.wav,x,,soon,1"], "line 2: start is 'soon', it must be seconds, 0 or more"),
        (["a.wav,x,,2,1"], "line 2: end is '1', it must be seconds, more than the start"),
        (["a.wav,x,,0,nan"], "line 2: end is 'nan'"),
        (["a.wav,x,,0,1", "./a.wav,y,,0,1"], "line 3: 'a.wav' is listed twice, first at line 2"),
        (['a.wav,"x,,0,1'], "not a readable CSV file"),
        (["../a.wav,x,,0,1"], "leads out of the data folder"),
        (["/etc/hostname,x,,0,1"], "leads out of the data folder"),
    ],
)
def test_a_malformed_manifest_is_refused_with_its_line(
    tmp_path: Path, tone: Tone, rows: list[str], complaint: str
) -> None:
    tone(tmp_path / "a.wav", seconds=2)
    path = table(tmp_path / "m.csv", "filename,label,split,start,end", rows)
    with pytest.raises(UserError, match=complaint):
        load(path)


def test_esc50_uses_the_official_folds(tmp_path: Path, tone: Tone) -> None:
    rows = []
    for fold in range(1, 6):
        for target, category in ((0, "dog"), (10, "rain")):
            name = f"{fold}-10{fold}{target}-A-{target}.wav"
            tone(tmp_path / "audio" / name)
            rows.append(f"{name},{fold},{target},{category},True,10{fold}{target},A")
    table(
        tmp_path / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take", rows
    )
    dataset = load(tmp_path)
    assert (dataset.layout, dataset.folds) == ("ESC-50", ("1", "2", "3", "4", "5"))
    assert {c.fold: c.split for c in dataset.clips} == {
        **dict.fromkeys("123", "train"),
        "4": "validation",
        "5": "test",
    }


def test_esc10_as_first_published_uses_the_folds_in_the_names(tmp_path: Path, tone: Tone) -> None:
    for folder in ("001 - Dog bark", "002 - Rain"):
        for fold in range(1, 6):
            tone(tmp_path / folder / f"{fold}-3{fold}-A.ogg")
    dataset = load(tmp_path, test_fold="2")
    assert (dataset.layout, dataset.classes) == ("ESC-10", ("Dog bark", "Rain"))
    assert {c.fold for c in dataset.split("test")} == {"2"}
    assert {c.fold for c in dataset.split("validation")} == {"1"}
    assert dataset.clips[0].group == "31"


def test_urbansound_reads_slices_whole_though_its_table_has_starts(
    tmp_path: Path, tone: Tone
) -> None:
    rows = []
    for fold in range(1, 11):
        for class_id, name in ((3, "dog_bark"), (5, "engine_idling")):
            slice_name = f"{fold}00-{class_id}-0-0.wav"
            tone(tmp_path / "audio" / f"fold{fold}" / slice_name)
            rows.append(f"{slice_name},{fold}00,58.5,62.5,1,{fold},{class_id},{name}")
    header = "slice_file_name,fsID,start,end,salience,fold,classID,class"
    table(tmp_path / "metadata" / "UrbanSound8K.csv", header, rows)
    dataset = load(tmp_path)
    assert (dataset.layout, len(dataset.folds)) == ("UrbanSound8K", 10)
    assert {c.fold for c in dataset.split("test")} == {"10"}
    assert {c.group for c in dataset.split("validation")} == {"900"}
    assert len(dataset.clips) == 20


TAU = {
    "2019": ("airport-{city}-{place}-{i}-a.wav", "a", ("airport", "bus", "metro_station")),
    "2020 Mobile": ("airport-{city}-{place}-{i}-s1.wav", "s1", ("airport", "bus", "tram")),
    "2022 Mobile": ("airport-{city}-{place}-{i}-0-b.wav", "b", ("airport", "bus", "tram")),
    "2020 3Class": ("airport-{city}-{place}-{i}-a.wav", "a", ("indoor", "outdoor", "transport")),
}


@pytest.mark.parametrize("edition", TAU)
def test_tau_keeps_its_official_split_and_takes_validation_from_other_places(
    tmp_path: Path, tone: Tone, edition: str
) -> None:
    pattern, device, labels = TAU[edition]
    meta, train, evaluate = [], [], []
    for place in range(6):
        city = ("lisbon", "lyon")[place % 2]
        for i, label in enumerate(labels):
            name = "audio/" + pattern.format(city=city, place=place, i=10 * place + i)
            tone(tmp_path / name)
            meta.append(f"{name}\t{label}\t{city}-{place}\t{device}")
            (evaluate if place == 5 else train).append(f"{name}\t{label}")
    tone(tmp_path / "audio" / "unused-lyon-9-9-a.wav")
    meta.append("audio/unused-lyon-9-9-a.wav\tairport\tlyon-9\ta")
    table(tmp_path / "meta.csv", "filename\tscene_label\tidentifier\tsource_label", meta)
    table(tmp_path / "evaluation_setup/fold1_train.csv", "filename\tscene_label", train)
    table(tmp_path / "evaluation_setup/fold1_evaluate.csv", "filename\tscene_label", evaluate)
    dataset = load(tmp_path)
    assert dataset.layout == "TAU Urban Acoustic Scenes"
    assert dataset.classes == tuple(sorted(labels))
    assert {c.group for c in dataset.split("test")} == {"lyon-5"}
    assert len({c.group for c in dataset.split("validation")}) == 1
    assert len(dataset.clips) == 18
    assert {(c.device, c.city) for c in dataset.clips} == {(device, "lisbon"), (device, "lyon")}


def test_speech_commands_become_ten_words_unknown_and_silence(tmp_path: Path, tone: Tone) -> None:
    lists: dict[str, list[str]] = {"validation": [], "testing": [], "training": []}
    for word in ("yes", "no", "bed", "cat"):
        for i in range(30):
            path = f"{word}/{i:08x}_nohash_0.wav"
            tone(tmp_path / path)
            lists["validation" if i < 10 else "testing" if i < 20 else "training"].append(path)
    tone(tmp_path / "_background_noise_" / "hum.wav", seconds=3)
    for name in ("validation", "testing"):
        (tmp_path / f"{name}_list.txt").write_text("\n".join(lists[name]) + "\n")
    dataset = load(tmp_path)
    assert dataset.layout == "Speech Commands"
    assert dataset.classes == ("_silence_", "_unknown_", "no", "yes")
    # a tenth of the twenty keyword clips of each split, as in the reference
    for split in ("train", "validation", "test"):
        assert Counter(c.label for c in dataset.clips if c.split == split) == {
            "yes": 10,
            "no": 10,
            "_unknown_": 2,
            "_silence_": 2,
        }
    silence = [c for c in dataset.clips if c.label == "_silence_"]
    assert all(0 < c.gain <= 0.1 and c.duration_s == pytest.approx(1) for c in silence)
    assert dataset.clips[-1].group == "0000001d"


def test_free_spoken_digit_has_a_fold_for_each_speaker(tmp_path: Path, tone: Tone) -> None:
    for speaker in ("jackson", "lucas", "theo", "nicolas"):
        for digit in range(3):
            for take in range(2):
                tone(tmp_path / "recordings" / f"{digit}_{speaker}_{take}.wav")
    table(tmp_path / "speakers.csv", "speaker,gender", ["jackson,male"])
    dataset = load(tmp_path, test_fold="jackson")
    assert dataset.layout == "Free Spoken Digit"
    assert dataset.folds == ("jackson", "lucas", "nicolas", "theo")
    assert dataset.classes == ("0", "1", "2")
    assert {c.group for c in dataset.split("test")} == {"jackson"}
    assert {c.group for c in dataset.split("validation")} == {"theo"}
    assert "random split would leak: 24 recordings share 4 groups" in describe(dataset).leak


# splits


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 14)), min_size=20, max_size=80, unique=False
    )
)
def test_no_group_is_ever_divided_and_every_class_is_everywhere(
    pairs: list[tuple[int, int]],
) -> None:
    clips = [Clip(f"{i}", f"c{label}", group=f"g{g}") for i, (label, g) in enumerate(pairs)]
    units = {clip: clip.group or "" for clip in clips}
    try:
        done, folds = with_splits("here", clips, units, None, None)
    except UserError as error:
        assert "too few to be in every split" in str(error)
        assert min(Counter(label for label, _ in {(c.label, c.group) for c in clips}).values()) < 5
        return
    sides = {(clip.group, clip.split) for clip in done}
    assert len(sides) == len({clip.group for clip in clips})
    for label in {clip.label for clip in clips}:
        assert {c.split for c in done if c.label == label} == {"train", "validation", "test"}
    assert len(done) == len(clips)
    assert len(folds) >= 3


@pytest.mark.parametrize("clips_per_class", [5, 23, 40])
def test_without_groups_each_fold_gets_its_share_of_each_class(clips_per_class: int) -> None:
    clips = [Clip(f"{i}", f"c{i % 4}") for i in range(4 * clips_per_class)]
    done, folds = with_splits("here", clips, {c: c.path for c in clips}, None, None)
    counts = Counter((c.label, c.fold) for c in done)
    shares = {counts[f"c{label}", fold] for label in range(4) for fold in folds}
    assert len(folds) == 5
    assert max(shares) - min(shares) <= 1


def test_cross_validation_tests_every_recording_once(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path, tone, 7)
    folds = load(tmp_path).folds
    rounds = [load(tmp_path, test_fold=fold) for fold in folds]
    tested = Counter(clip.path for dataset in rounds for clip in dataset.split("test"))
    assert len(tested) == 14
    assert set(tested.values()) == {1}
    assert len({dataset.fingerprint for dataset in rounds}) == len(folds)


def test_copies_of_one_recording_stay_together(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path, tone, 12)
    for i in range(4):
        shutil.copy(tmp_path / "a" / "a0.wav", tmp_path / "a" / f"copy{i}.wav")
    dataset = load(tmp_path)
    copies = {c.split for c in dataset.clips if "copy" in c.path or c.path == "a/a0.wav"}
    assert len(copies) == 1


def test_only_groups_of_several_recordings_would_leak(tmp_path: Path, tone: Tone) -> None:
    rows = []
    for i in range(30):
        tone(tmp_path / f"{i}.wav")
        rows.append(f"{i}.wav,{'xy'[i % 2]},{'twin' if i < 2 else i}")
    path = table(tmp_path / "m.csv", "filename,label,group", rows)
    assert "2 recordings share 1 groups" in describe(load(path)).leak
    table(path, "filename,label,group", rows[1:])
    assert not describe(load(path)).leak


def test_a_given_split_that_leaks_is_reported(tmp_path: Path, tone: Tone) -> None:
    rows = []
    for i, split in enumerate(("train", "train", "validation", "validation", "test", "test")):
        tone(tmp_path / f"{i}.wav")
        rows.append(f"{i}.wav,{'xy'[i % 2]},{split},ann")
    path = table(tmp_path / "m.csv", "filename,label,split,group", rows)
    leak = describe(load(path)).leak
    assert "the given split leaks: 1 groups" in leak
    assert "'ann'" in leak


def test_the_fingerprint_changes_with_a_label_a_split_and_a_sample(
    tmp_path: Path, tone: Tone
) -> None:
    class_folders(tmp_path, tone)
    seen = [load(tmp_path).fingerprint, load(tmp_path, test_fold="1").fingerprint]
    (tmp_path / "b" / "b0.wav").rename(tmp_path / "a" / "b0.wav")
    seen.append(load(tmp_path).fingerprint)
    tone(tmp_path / "a" / "b0.wav", pitch_hz=441)
    seen.append(load(tmp_path).fingerprint)
    assert len(set(seen)) == 4


# bad files


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


def poison(path: Path) -> None:
    audio, rate = soundfile.read(path)
    audio[7] = np.nan
    soundfile.write(path, audio, rate, subtype="FLOAT")


def silence(path: Path) -> None:
    soundfile.write(path, np.zeros(1000), 8000)


BAD: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "empty": ("wav", lambda p: p.write_bytes(b""), "empty file"),
    "text": ("wav", lambda p: p.write_text("hello"), "not readable as audio"),
    "header only": ("wav", lambda p: soundfile.write(p, np.zeros(0), 8000), "holds no samples"),
    "silent": ("flac", silence, "silent"),
    "nan": ("wav", poison, "holds NaN or infinite samples"),
    "cut wav": ("wav", cut, "truncated"),
    "cut flac": ("flac", cut, "not readable as audio"),
    "cut ogg": ("ogg", cut, "truncated"),
    "cut mp3": ("mp3", cut, "truncated"),
    "cut aiff": ("aiff", cut, "truncated"),
    "pipe": ("wav", lambda p: (p.unlink(), os.mkfifo(p)), "not a file"),
    "dangling": ("wav", lambda p: (p.unlink(), p.symlink_to("gone.wav")), "no such file"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_file_is_listed_with_its_reason_and_left_out(
    tmp_path: Path, tone: Tone, kind: str
) -> None:
    suffix, spoil, reason = BAD[kind]
    class_folders(tmp_path, tone)
    spoil(tone(tmp_path / "a" / f"bad.{suffix}", seconds=2, rate_hz=16000))
    dataset = load(tmp_path)
    assert [problem.file for problem in dataset.problems] == [f"a/bad.{suffix}"]
    assert reason in dataset.problems[0].reason
    assert len(dataset.clips) == 12


def test_more_than_a_tenth_of_bad_files_stops_unless_tolerated(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path, tone, 9)
    for i in range(2):
        (tmp_path / "a" / f"bad{i}.wav").write_bytes(b"")
    assert len(load(tmp_path).problems) == 2
    (tmp_path / "a" / "bad2.wav").write_bytes(b"")
    with pytest.raises(UserError, match="3 of 21 recordings cannot be used"):
        load(tmp_path)
    assert len(load(tmp_path, tolerate_bad_files=True).problems) == 3


def test_a_file_that_went_bad_after_it_was_checked_is_noticed(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path, tone)
    assert not load(tmp_path).problems
    path = tmp_path / "a" / "a3.wav"
    good, status = path.read_bytes(), path.stat()
    path.write_bytes(good[:100])
    assert [p.file for p in load(tmp_path).problems] == ["a/a3.wav"]
    path.write_bytes(good)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not load(tmp_path).problems


def test_parts_beyond_the_end_of_a_file_are_problems(tmp_path: Path, tone: Tone) -> None:
    rows = []
    for i in range(20):
        tone(tmp_path / f"{i}.wav", seconds=1)
        rows.append(f"{i}.wav,{'xy'[i % 2]},0,1")
    rows += ["0.wav,x,4,5", "1.wav,y,0.5,3"]
    dataset = load(table(tmp_path / "m.csv", "filename,label,start,end", rows))
    assert [p.reason for p in dataset.problems] == [
        "starts at 4 s, but the file is 1 s long",
        "ends at 3 s, but the file is 1 s long",
    ]


# bad inputs


def one_class(root: Path, tone: Tone) -> None:
    class_folders(root, tone, classes="a")


def too_few(root: Path, tone: Tone) -> None:
    class_folders(root, tone)
    tone(root / "rare" / "1.wav")
    tone(root / "rare" / "2.wav")


def no_audio(root: Path, tone: Tone) -> None:
    for label in "ab":
        (root / label).mkdir()
        (root / label / "x.wav").write_text("no audio")


def flat(root: Path, tone: Tone) -> None:
    tone(root / "1.wav")


def linked_file(root: Path, tone: Tone) -> None:
    class_folders(root, tone)
    outside = tone(root.parent / "elsewhere" / "x.wav")
    (root / "a" / "x.wav").symlink_to(outside)


def linked_folder(root: Path, tone: Tone) -> None:
    class_folders(root, tone)
    class_folders(root.parent / "elsewhere", tone)
    (root / "c").symlink_to(root.parent / "elsewhere" / "a")


def two_manifests(root: Path, tone: Tone) -> None:
    for name in ("one.csv", "two.csv"):
        table(root / name, "filename,label", ["x.wav,a"])


def untrained(root: Path, tone: Tone) -> None:
    class_folders(root / "train", tone)
    class_folders(root / "test", tone, classes="abc")


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (one_class, "holds one class only \\('a'\\), a classifier needs two or more"),
        (too_few, "class 'rare' has 2 recordings, too few to be in every split"),
        (no_audio, "no readable audio \\(a/x.wav: not readable as audio"),
        (flat, "no recordings in a known layout; put the audio files of each class into a folder"),
        (lambda root, tone: None, "no recordings in a known layout"),
        (linked_file, "leads out of the data folder"),
        (linked_folder, "leads out of the data folder"),
        (two_manifests, "several manifests \\(one.csv, two.csv\\)"),
        (untrained, "class 'c' has no training recording"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_sentence(
    tmp_path: Path, tone: Tone, make: Callable[[Path, Tone], None], complaint: str
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    make(root, tone)
    with pytest.raises(UserError, match=complaint) as error:
        load(root)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_wrong_name_is_answered_with_the_nearest_built_in_one() -> None:
    with pytest.raises(UserError, match="did you mean 'synthetic-scenes'"):
        load("synthetic-scene")


def test_folds_that_do_not_exist_are_refused(tmp_path: Path, tone: Tone) -> None:
    class_folders(tmp_path, tone)
    with pytest.raises(UserError, match="no fold '9', there are 1, 2, 3, 4, 5"):
        load(tmp_path, test_fold="9")
    with pytest.raises(UserError, match="both test and validation"):
        load(tmp_path, test_fold="1", validation_fold="1")
    with pytest.raises(UserError, match="fixed split"):
        load("synthetic-scenes", test_fold="1")


# real recordings


def test_real_esc10_has_its_five_official_folds(recordings: Path) -> None:
    report = describe(load(recordings / "ESC-10"))
    assert report.layout == "ESC-10"
    assert report.splits == {"train": 240, "validation": 80, "test": 80}
    assert set(report.classes.values()) == {40}
    assert report.folds == ["1", "2", "3", "4", "5"]
    assert report.sample_rates_hz == {"44100": 400}
    assert not report.problems
    assert "the splits here keep each group on one side" in report.leak


def test_real_digits_leave_one_speaker_out(recordings: Path) -> None:
    report = describe(load(recordings / "free-spoken-digit-dataset", test_fold="lucas"))
    assert report.clips == 3000
    assert len(report.groups) == 6
    assert report.splits == {"train": 2000, "validation": 500, "test": 500}
    assert not report.problems
