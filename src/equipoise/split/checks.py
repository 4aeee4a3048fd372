"""Coded checks with three answers: finding, none, not applicable (and why). A leak is always an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from equipoise.core.errors import ConfigError, DataError, LeakageError
from equipoise.core.records import PARTS, Manifest, Splits
from equipoise.split.strata import named_strata, patients_needed

#: What each check looks for, in the order in which they are always listed.
NAMES = {
    "EQ001": "patient on two sides",
    "EQ002": "duplicate on two sides",
    "EQ003": "class absent from a part",
    "EQ004": "resampled row outside train",
    "EQ005": "too few patients to stratify",
    "EQ006": "label conflict",
    "EQ-OFFICIAL": "official sides share patients or pictures",
}


_Answer = tuple[Literal["finding", "none", "not applicable"], str]


_Sides = Mapping[str, np.ndarray]  # as of `published_test_sides`


_SPLIT_AGAIN = '"equipoise split"; if the file was edited by hand, restore it with "dvc checkout".'


_LEAKS = {
    "patient": ("EQ001", "Run"),
    "picture": (
        "EQ002",
        'Run "equipoise ingest", which makes one patient of those that share a picture, and',
    ),
}


@dataclass(frozen=True)
class Check:
    """One answer: a stable code, what was looked for, the answer, and what was found or why it does not apply."""

    code: str
    name: str
    answer: Literal["finding", "none", "not applicable"]
    detail: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def run(splits: Splits, manifest: Manifest) -> list[Check]:
    """Check a split against its manifest; run before every split is written and before every fit.

    Returns:
        One answer for each code of `NAMES`, in that order.

    Raises:
        LeakageError: When a patient (EQ001) or a picture (EQ002) is on two sides. With official sides this is the
            finding EQ-OFFICIAL between the published train and test, and an error anywhere else.
        DataError: When the split is no division of the manifest's images, or does not keep the published sides.
    """
    scheme, folds = (splits.meta["settings"]["split"][name] for name in ("scheme", "folds"))
    sides = published_test_sides(manifest) if scheme == "official" else {}
    if (group_by := splits.meta["group_by"]) not in manifest.table:
        raise DataError(
            f"{_file(splits)} was grouped by {group_by:.80}, which the manifest lacks. Run {_SPLIT_AGAIN}"
        )
    rounds = _parts_by_round(splits, manifest, sides)
    patients = pd.Categorical(manifest.table[splits.meta["group_by"]].astype(str))
    groups = {"patient": patients, "picture": pd.Categorical(manifest.table["picture"])}
    for noun, names in groups.items():
        for where, part in rounds.items():
            ours = part != "test" if sides else slice(None)
            _refuse_leak(noun, names[ours], part[ours], f"{_file(splits)}, {where}")
    official = _official_overlap(sides, groups)
    inside = (
        "none inside the published train side; see EQ-OFFICIAL" if official[0] == "finding" else ""
    )
    without_ids = "no patient ids are known: every image counts as one patient"
    answers: list[_Answer] = [
        ("none", inside)
        if manifest.meta.get("patient_ids", True)
        else ("not applicable", without_ids),
        ("none", inside),
        _absent_class(rounds, manifest),
        ("not applicable", "no plan yet"),
        _too_few_to_stratify(scheme, folds, sides, patients.codes, manifest),
        _label_conflict(groups["picture"], manifest),
        official,
    ]
    return [Check(code, name, *answer) for (code, name), answer in zip(NAMES.items(), answers)]


def overlapping(rows: pd.DataFrame, pictures: np.ndarray) -> np.ndarray:
    """Find the test rows of one round whose patient, or whose picture, is also in train or val: boolean (num_rows,).

    `pictures` (num_rows,) is the manifest's `picture` of each row.
    """
    test = (rows["part"] == "test").to_numpy()
    patient = rows["patient_id"].isin(rows["patient_id"][~test]).to_numpy()
    return test & (patient | pd.Series(pictures).isin(pictures[~test]).to_numpy())


def written_plan_within_train(plan: pd.DataFrame, splits: Splits) -> Check:
    """EQ004 for a written plan (the table of plan.parquet): draws and partners are train rows of their repeat and fold.

    Raises:
        LeakageError: When one is of val, of test, or of no image of that round.
    """
    for (repeat, fold), drawn in plan.groupby(["repeat", "fold"]):
        if "partner_id" in drawn:
            partners = drawn[drawn["partner_id"] != drawn["image_id"]]
            drawn = pd.concat([drawn, partners.assign(image_id=partners["partner_id"])])
        part = drawn["image_id"].map(splits.round(repeat, fold).set_index("image_id")["part"])
        outside = drawn.assign(part=part.fillna("no part"))[part != "train"]
        if len(outside):
            first = outside.iloc[0]
            raise LeakageError(
                f"EQ004: the plan draws image '{first['image_id']}' (view {first['view']}, seed {first['seed']}), "
                f"which is in {first['part']} of {_file(splits)}, repeat {repeat}, fold {fold}; {len(outside)} of its "
                f"{len(drawn)} draws there are outside train. A strategy may only repeat, drop or augment train rows. "
                f'Run "equipoise scenario" again.'
            )
    return Check("EQ004", NAMES["EQ004"], "none", f"{len(plan)} draws, all of train rows")


def finding(found: list[Mapping[str, Any]], code: str) -> bool:
    """Whether a list of answers (as plain data) holds a finding with this code."""
    return any(check["code"] == code and check["answer"] == "finding" for check in found)


def published_test_sides(manifest: Manifest) -> dict[str, np.ndarray]:
    """Read the published sides: boolean (num_images,), true for test, by column of the manifest.

    The column is `official_split`, or there are `official_split_1`, `official_split_2`, ... in this order.

    Raises:
        ConfigError: When the dataset publishes no split.
        DataError: When an image is neither in train nor in test.
    """
    published, dataset = (
        manifest.table.filter(regex=r"^official_split(_\d+)?$"),
        manifest.meta["dataset"],
    )
    columns = sorted(published, key=lambda column: (len(column), column))  # 2 before 10
    if not columns:
        raise ConfigError(
            f"split.scheme is official, but dataset '{dataset}' publishes no split. Use holdout or kfold."
        )
    for column in columns:
        other = ~published[column].isin(["train", "test"])
        if other.any():
            image, value = manifest.table.loc[other, ["image_id", column]].iloc[0]
            shown = "nothing" if pd.isna(value) or value == "" else f"'{value}'"
            raise DataError(
                f"split.scheme is official, but {other.sum()} of {len(other)} images of dataset '{dataset}' are "
                f"neither train nor test in column {column} (for example '{image}': {shown}). Complete the published "
                f"list, leave these images out, or use split.scheme: holdout or kfold."
            )
    return {column: (published[column] == "test").to_numpy() for column in columns}


def _file(splits: Splits) -> str:
    return f"data/splits/{splits.meta.get('study')}.parquet"


def _parts_by_round(splits: Splits, manifest: Manifest, sides: _Sides) -> dict[str, pd.Categorical]:
    """Bring every round into the order of the manifest: the part of each image, by "repeat 0, fold 0"."""
    parts = {}
    owner = manifest.table.set_index("image_id")[splits.meta["group_by"]].astype(str)
    for repeat, fold in splits.rounds():
        rows, where = (
            splits.round(repeat, fold).set_index("image_id"),
            f"repeat {repeat}, fold {fold}",
        )
        in_order = rows.index.equals(
            owner.index
        )  # as `splits.make` writes them; sorting takes longer
        aligned = rows if in_order else rows[~rows.index.duplicated()].reindex(owner.index)
        parts[where] = pd.Categorical(aligned["part"], PARTS)
        if len(rows) != len(owner) or parts[where].isna().any():
            if set(splits.table["image_id"]) != set(owner.index):
                raise LeakageError(
                    f"The split of study '{splits.meta.get('study')}' holds other images than its manifest. "
                    f"Run `equipoise split` again."
                )
            raise DataError(
                f"{_file(splits)}, {where} does not put every image of the manifest into exactly one of "
                f"{', '.join(PARTS)}. Run {_SPLIT_AGAIN}"
            )
        renamed = aligned["patient_id"] != owner
        if renamed.any():
            image = renamed.idxmax()
            raise LeakageError(
                f"EQ001: {_file(splits)}, {where} says that image '{image}' is of patient "
                f"'{aligned.at[image, 'patient_id']}', the manifest says '{owner[image]}' ({renamed.sum()} such rows). "
                f"Run {_SPLIT_AGAIN}"
            )
        if sides:
            test = parts[where] == "test"
            column, published = (
                list(sides.items())[fold] if fold < len(sides) else ("no such fold", ~test)
            )
            if (test != published).any():
                raise DataError(
                    f"{_file(splits)}, {where} does not keep the published sides ({column}): "
                    f"{(test != published).sum()} images are on the other one. Run {_SPLIT_AGAIN}"
                )
    return parts


def _refuse_leak(noun: str, groups: pd.Categorical, part: pd.Categorical, where: str) -> None:
    leaks, (code, remedy) = _in_several(groups, part), _LEAKS[noun]
    if leaks:
        name, spread = next(iter(leaks.items()))
        raise LeakageError(
            f"{code}: {noun} '{_short(noun, name)}' is {spread} of {where}. A {noun} must be in exactly one part. "
            f"{remedy} {_SPLIT_AGAIN}"
        )


def _short(noun: str, name: str) -> str:
    return f"{name[:12]}..." if noun == "picture" else name


def _images(groups: pd.Categorical, kinds: pd.Categorical) -> np.ndarray:
    """Count the images of each group by kind, int (num_groups, num_kinds)."""
    shape = len(groups.categories), len(kinds.categories)
    pair = np.ravel_multi_index((groups.codes, kinds.codes), shape)
    return np.bincount(pair, minlength=np.prod(shape)).reshape(shape)


def _in_several(groups: pd.Categorical, parts: pd.Categorical) -> dict[str, str]:
    """Groups with images in more than one part, by name, and how many are where, in words."""
    images = _images(groups, parts)
    both = np.flatnonzero(np.count_nonzero(images, axis=1) > 1)
    return {
        name: "in "
        + " and ".join(f"{part} ({count} images)" for part, count in zip(PARTS, counts) if count)
        for name, counts in zip(groups.categories[both], images[both])
    }


def _first(texts: Sequence[str], most: int = 5, separator: str = "; ") -> str:
    return separator.join(
        [*texts[:most], *([f"and {len(texts) - most} more"] if len(texts) > most else [])]
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _division(column: str, sides: _Sides) -> str:
    return f"fold {column.rsplit('_', 1)[-1]}: " if len(sides) > 1 else ""


def _absent_class(rounds: Mapping[str, pd.Categorical], manifest: Manifest) -> _Answer:
    classes, lacking = pd.Categorical.from_codes(manifest.table["label"], manifest.classes), []
    for where, part in rounds.items():
        for name, images in zip(PARTS, _images(classes, part).T):
            absent = "/".join(classes.categories[images == 0]) if images.any() else "image"
            if absent:
                lacking.append(f"no {absent} in {name} of {where}")
    return ("finding", _first(lacking)) if lacking else ("none", "")


def _too_few_to_stratify(
    scheme: str, folds: int, sides: _Sides, patient: np.ndarray, manifest: Manifest
) -> _Answer:
    label, needed, few = manifest.table["label"].to_numpy(), patients_needed(scheme, folds), []
    goal = f"{folds} folds" if scheme == "kfold" else f"{needed} parts"
    for column, test in (sides or {"": np.zeros(len(label), dtype=bool)}).items():
        place = f"{_division(column, sides)}published train side, " if sides else ""
        for stratum, patients in named_strata(
            patient[~test], label[~test], manifest.classes
        ).items():
            if len(patients) < needed:
                reach = (
                    goal
                    if scheme != "kfold" or len(patients) < folds
                    else f"train, val and test of {goal}"
                )
                few.append(f"{place}{stratum}: {_count(len(patients), 'patient')} for {reach}")
    return ("finding", _first(few)) if few else ("none", "")


def _label_conflict(pictures: pd.Categorical, manifest: Manifest) -> _Answer:
    classes = pd.Categorical.from_codes(manifest.table["label"], manifest.classes)
    rows = manifest.table[
        (np.count_nonzero(_images(pictures, classes), axis=1) > 1)[pictures.codes]
    ]
    vouched_for = rows["image_id"].isin(manifest.meta.get("trusted") or [])
    unsure = rows[rows["picture"].isin(rows["picture"][~vouched_for])]
    found, examples = [], []
    for picture in unsure["picture"].unique()[:3]:
        same = unsure.loc[unsure["picture"] == picture, ["image_id", "class_name"]]
        examples.append(
            " and ".join(f"'{image}' ({name})" for image, name in same[:3].itertuples(index=False))
        )
    if examples:
        found.append(
            f"{_count(unsure['picture'].nunique(), 'picture')} under two classes: {'; '.join(examples)}"
        )
    if quarantined := manifest.meta.get("label_conflicts"):
        files = "file is" if quarantined == 1 else "files are"
        found.append(
            f"{quarantined} {files} quarantined until their label is decided, see the quarantine list"
        )
    if found:
        return "finding", ". ".join(found)
    return (
        "none",
        f"{_count(rows['picture'].nunique(), 'picture')} under two classes, vouched for"
        if len(rows)
        else "",
    )


def _official_overlap(sides: _Sides, groups: Mapping[str, pd.Categorical]) -> _Answer:
    if not sides:
        return "not applicable", "the split is our own"
    shared: dict[str, set[str]] = {noun: set() for noun in groups}
    lines = []
    for column, test in sides.items():
        texts, others = [], np.ones(len(test), dtype=bool)
        for noun, names in groups.items():
            spread = _in_several(names, pd.Categorical.from_codes(np.where(test, 2, 0), PARTS))
            both = sorted(set(names[others & names.isin(list(spread))]))
            texts += [f"{noun} {_short(noun, name)} {spread[name]}" for name in both]
            shared[noun].update(both)
            others = ~names.isin(both)  # pictures of a shared patient alone go without saying
        if texts:
            lines.append(_division(column, sides) + _first(texts, 4, ", "))
    if not lines:
        return "none", ""
    heads = " and ".join(_count(len(names), noun) for noun, names in shared.items() if names)
    are = "is" if sum(map(len, shared.values())) == 1 else "are"
    also = "results are also given without the shared rows"
    return "finding", f"{heads} {are} on both published sides; {also}. {'; '.join(lines)}"
