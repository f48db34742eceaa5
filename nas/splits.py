"""Who is trained on and who is tested on: folds and splits that keep every group on one side."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from nas.clips import Clip, Split
from nas.errors import UserError

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
FOLDS = 5
_ATTEMPTS = 20
NAMED_FOLDS = 10  # up to this many groups, each is a fold of its own: leave one speaker out

Units = Mapping[Clip, str]


def with_splits(
    name: str, clips: Sequence[Clip], units: Units, test: str | None, validation: str | None
) -> tuple[tuple[Clip, ...], tuple[str, ...]]:
    """Every clip with a split, and the names of the folds, if the splits come from folds.

    `units` says which clips belong together: no unit is ever divided by a split made here. The
    last fold is the test split and the one before it validation, unless `test` and `validation`
    name others. Raises UserError if there is too little to split.
    """
    if any(clip.split for clip in clips):
        if test or validation:
            raise UserError(f"{name}: has a fixed split, so there are no folds to choose from")
        return _refuse_untrained(name, _completed(name, clips, units)), ()
    if all(clip.fold for clip in clips):
        clips = _by_fold(name, clips, test, validation)
        return _refuse_untrained(name, clips), _folds(clips)
    clips = _by_fold(name, _with_folds(name, clips, units), test, validation)
    return tuple(clips), _folds(clips)


def _folds(clips: Sequence[Clip]) -> tuple[str, ...]:
    names = {clip.fold or "" for clip in clips}
    return tuple(sorted(names, key=lambda f: (int(f) if f.isdecimal() else -1, f)))


def _by_fold(
    name: str, clips: Sequence[Clip], test: str | None, validation: str | None
) -> list[Clip]:
    folds = _folds(clips)
    if len(folds) < 3:
        raise UserError(f"{name}: {len(folds)} folds, but training, validation and test need three")
    for fold in (test, validation):
        if fold is not None and fold not in folds:
            raise UserError(f"{name}: no fold '{fold}', there are {', '.join(folds)}")
    test = test or next(fold for fold in reversed(folds) if fold != validation)
    validation = validation or folds[folds.index(test) - 1]
    if test == validation:
        raise UserError(f"{name}: fold '{test}' cannot be both test and validation")
    split: dict[str | None, Split] = {test: "test", validation: "validation"}
    return [replace(clip, split=split.get(clip.fold, "train")) for clip in clips]


def _completed(name: str, clips: Sequence[Clip], units: Units) -> list[Clip]:
    """A given split as it is; a missing validation or test split is taken out of training."""
    unassigned = [clip.path for clip in clips if not clip.split]
    if unassigned:
        raise UserError(
            f"{name}: {len(unassigned)} recordings have no split while others do "
            f"(first {unassigned[0]}); give a split to all of them or to none"
        )
    present = {clip.split for clip in clips}
    missing = [split for split in SPLITS[1:] if split not in present]
    train = [clip for clip in clips if clip.split == "train"]
    if not missing or not train:
        return list(clips)
    fold = _stratified(name, train, units, len(missing) + 1)
    take = {clip: missing[-1 - n] for clip, n in fold.items() if n < len(missing)}
    return [replace(clip, split=take[clip]) if clip in take else clip for clip in clips]


def _refuse_untrained(name: str, clips: Sequence[Clip]) -> tuple[Clip, ...]:
    trained = {clip.label for clip in clips if clip.split == "train"}
    for clip in clips:
        if clip.label not in trained:
            raise UserError(
                f"{name}: class '{clip.label}' has no training recording, only "
                f"{clip.split} ones such as {clip.path}"
            )
    for split in SPLITS:
        if not any(clip.split == split for clip in clips):
            raise UserError(f"{name}: the {split} split has no recordings")
    return tuple(clips)


# folds of our own


def _with_folds(name: str, clips: Sequence[Clip], units: Units) -> list[Clip]:
    """One fold per group if there are few and each has every class, else five stratified ones."""
    groups = {clip.group for clip in clips}
    pairs = {(clip.group, clip.label) for clip in clips}
    labels = {clip.label for clip in clips}
    complete = None not in groups and len(pairs) == len(groups) * len(labels)
    if complete and 3 <= len(groups) <= NAMED_FOLDS:
        return [replace(clip, fold=clip.group) for clip in clips]
    fold = _stratified(name, clips, units, 3)
    return [replace(clip, fold=str(FOLDS - fold[clip])) for clip in clips]


def _stratified(name: str, clips: Sequence[Clip], units: Units, needed: int) -> dict[Clip, int]:
    """A fold number for each clip, such that each class reaches `needed` different splits.

    These are the first `needed` - 1 folds and the rest. Nothing but the recordings decides.
    """
    members: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        members[units[clip]].append(clip)
    total = Counter(clip.label for clip in clips)
    missing: set[str] = set()
    for attempt in range(_ATTEMPTS):
        fold = _greedy(members, total, needed, attempt)
        reached = {(clip.label, min(number, needed - 1)) for clip, number in fold.items()}
        missing = {label for label in total for n in range(needed) if (label, n) not in reached}
        if not missing:
            return fold
    label = min(missing)
    count = len({units[clip] for clip in clips if clip.label == label})
    groups = f" in {count} groups" if count < total[label] else ""
    raise UserError(
        f"{name}: class '{label}' has {total[label]} recordings{groups}, too few to be in every "
        "split; add recordings or give each one a split in a CSV manifest"
    )


def _greedy(
    members: Mapping[str, list[Clip]], total: Counter[str], needed: int, attempt: int
) -> dict[Clip, int]:
    """Units go where their classes are rarest: large ones first, later attempts in any order."""
    folds: list[Counter[str]] = [Counter() for _ in range(FOLDS)]
    fold = {}
    order = sorted(members, key=lambda u: (0 if attempt else -len(members[u]), _hash(u, attempt)))
    for unit in order:
        share = Counter(clip.label for clip in members[unit])
        costs = [_crowding(share, folds[n], total, n, needed) for n in range(FOLDS)]
        best = costs.index(min(costs))
        folds[best] += share
        fold.update(dict.fromkeys(members[unit], best))
    return fold


def _crowding(
    share: Counter[str], fold: Counter[str], total: Counter[str], number: int, needed: int
) -> tuple[float, int, int]:
    overlap = sum(n * fold[label] / total[label] ** 2 for label, n in share.items())
    held_out_first = number if number < needed - 1 and not overlap else needed
    return overlap, held_out_first, fold.total()


def _hash(unit: str, attempt: int) -> bytes:
    return hashlib.blake2b(f"{attempt} {unit}".encode(), digest_size=8).digest()


def leak_warning(clips: Sequence[Clip], units: Units) -> str:
    """One sentence if the splits share a group or a file, or a random split would; else ""."""
    shared = shared_groups(clips)
    if shared:
        return (
            f"the given split leaks: {len(shared)} groups are on more than one side "
            f"(first '{shared[0]}'), so accuracies will be too high"
        )
    copies = _straddling(units)
    if copies:
        return f"{len(copies)} recordings are on more than one side of the split as exact copies"
    groups = Counter(clip.group for clip in clips if clip.group)
    shared_by = [count for count in groups.values() if count > 1]
    if not shared_by:
        return ""
    return (
        f"a random split would leak: {sum(shared_by)} recordings share {len(shared_by)} groups "
        "(speaker, location or source); the splits here keep each group on one side"
    )


def shared_groups(clips: Sequence[Clip]) -> list[str]:
    """Groups that are on more than one side of the split."""
    return _straddling({clip: clip.group for clip in clips})


def _straddling(belongs: Mapping[Clip, str | None]) -> list[str]:
    sides: dict[str, set[str | None]] = defaultdict(set)
    for clip, unit in belongs.items():
        if unit:
            sides[unit].add(clip.split)
    return sorted(unit for unit, splits in sides.items() if len(splits) > 1)
