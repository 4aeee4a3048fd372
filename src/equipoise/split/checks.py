"""Coded checks with three answers: passed, failed, not applicable. A leak is always an error.

Each check is a class that declares its code, its title and its question; `CHECKS` lists them in the
order in which they are always answered. EQ007 and EQ008 need features and are answered by
`compare`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pandas as pd

from equipoise.core.documents import CheckAnswer
from equipoise.core.errors import LeakageError
from equipoise.core.records import Manifest, Splits
from equipoise.core.text import counted, first_of
from equipoise.split.division import SPLIT_AGAIN, Division, divide, split_file
from equipoise.split.groups import count_images, short_digest, spread_groups
from equipoise.split.official import divided_rows, published_fold
from equipoise.split.strata import named_strata, patients_needed

#: A patient with more than this share of a class or a part decides what is found there.
_GIANT_SHARE = 1 / 3

Verdict = Literal["failed", "passed", "not applicable"]


class Check(CheckAnswer):
    """The answer of one check: code, title, verdict, and what was found or why not."""

    def __init__(self, code: str, name: str, answer: Verdict, detail: str = "") -> None:
        super().__init__(code=code, name=name, answer=answer, detail=detail)


class Answer(NamedTuple):
    """A verdict and its detail in words, before it gets the code of its check."""

    verdict: Verdict
    detail: str = ""


class CodedCheck(ABC):
    """What a check declares.

    Attributes:
        code: Stable name, for example EQ001.
        title: What it looks for.
        question: The question that a check which failed answers with yes.
    """

    code: ClassVar[str]
    title: ClassVar[str]
    question: ClassVar[str]

    @abstractmethod
    def answer(self, division: Division) -> Answer:
        """Answer the question for a split.

        Raises:
            LeakageError: When the finding is a leak.
        """


def check_split(splits: Splits, manifest: Manifest) -> list[Check]:
    """Check a split against its manifest, before it is written and before every fit.

    Returns:
        One answer for each of `CHECKS`, in that order.

    Raises:
        LeakageError: When a patient (EQ001) or a picture (EQ002) is on two sides. Between the
            published train and test of official sides this is the finding EQ-OFFICIAL; anywhere
            else it is an error.
        DataError: When the split is no division of the manifest's images, or does not keep the
            published sides.
    """
    division = divide(splits, manifest)
    answers = []
    for check in CHECKS:
        answer = check.answer(division)
        answers.append(Check(check.code, check.title, answer.verdict, answer.detail))
    return answers


def finding(answers: Iterable[CheckAnswer | Mapping[str, Any]], code: str) -> bool:
    """Say whether answers, as records or as plain data, hold a failed check with this code."""
    of_code = [answer for answer in map(CheckAnswer.model_validate, answers) if answer.code == code]
    return any(answer.answer == "failed" for answer in of_code)


def overlapping(rows: pd.DataFrame, pictures: np.ndarray) -> np.ndarray:
    """Find the test rows of one round whose patient, or whose picture, is also in train or val.

    Args:
        rows: Rows of the split's table.
        pictures: The manifest's `picture` of each row, (num_rows,).

    Returns:
        Boolean (num_rows,).
    """
    test = (rows["part"] == "test").to_numpy()
    shares_patient = _stands_outside(rows["patient_id"].to_numpy(), test)
    shares_picture = _stands_outside(pictures, test)
    return test & (shares_patient | shares_picture)


def _stands_outside(names: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Whether a name (num_rows,) is also that of a row outside test, bool (num_rows,)."""
    outside = set(names[~test].tolist())
    return np.array([name in outside for name in names.tolist()], dtype=bool)


def written_plan_within_train(plan: pd.DataFrame, splits: Splits) -> Check:
    """Answer EQ004 for a written plan: all draws and mixing partners are train rows of their round.

    Args:
        plan: The table of plan.parquet.
        splits: The split that the plan was made on.

    Raises:
        LeakageError: When one is of val, of test, or of no image of that round.
    """
    check = PlanOutsideTrain
    for (repeat, fold), of_round in plan.groupby(["repeat", "fold"]):
        draws = _with_partners(of_round)
        part_of = splits.round(repeat, fold).set_index("image_id")["part"]
        part = draws["image_id"].map(part_of)
        outside = draws.assign(part=part.fillna("no part"))[part != "train"]
        if outside.empty:
            continue
        first = outside.iloc[0]
        raise LeakageError(
            f"{check.code}: the plan draws image '{first['image_id']}' (view {first['view']}, seed "
            f"{first['seed']}), which is in {first['part']} of {split_file(splits)}, repeat {repeat}, "
            f"fold {fold}; {len(outside)} of its {len(draws)} draws there are outside train. A strategy "
            f'may only repeat, drop or augment train rows. Run "equipoise scenario" again.'
        )
    return Check(check.code, check.title, "passed", f"{len(plan)} draws, all of train rows")


def _with_partners(draws: pd.DataFrame) -> pd.DataFrame:
    """Draws, and below them the images that some of them are mixed with, as draws of their own."""
    if "partner_id" not in draws:
        return draws
    mixed = draws[draws["partner_id"] != draws["image_id"]]
    partners = mixed.assign(image_id=mixed["partner_id"])
    return pd.concat([draws, partners])


# --- the checks -----------------------------------------------------------------------------------


class PatientOnTwoSides(CodedCheck):
    """EQ001: a model that has seen a patient recognises the patient, not the disease."""

    code = "EQ001"
    title = "patient on two sides"
    question = "Are images of one patient in more than one part of a round?"

    def answer(self, division: Division) -> Answer:
        """Refuse a leak; without patient ids there is nothing to look for."""
        leak = _first_leak(division, division.patients)
        if leak:
            raise LeakageError(
                f"{self.code}: patient '{leak.group}' is {leak.spread} of {leak.where}. A patient must "
                f"be in exactly one part. Run {SPLIT_AGAIN}"
            )
        if not division.manifest.meta.get("patient_ids", True):
            return Answer(
                "not applicable", "no patient ids are known: every image counts as one patient"
            )
        return Answer("passed", _where_none(division))


class PictureOnTwoSides(CodedCheck):
    """EQ002: a copy of a test picture was trained on, even under the name of another patient."""

    code = "EQ002"
    title = "duplicate on two sides"
    question = "Are copies of one picture in more than one part of a round?"

    def answer(self, division: Division) -> Answer:
        """Refuse a leak."""
        leak = _first_leak(division, division.pictures)
        if leak:
            raise LeakageError(
                f"{self.code}: picture '{short_digest(leak.group)}' is {leak.spread} of {leak.where}. "
                f'A picture must be in exactly one part. Run "equipoise ingest", which makes one patient '
                f"of those that share a picture, and {SPLIT_AGAIN}"
            )
        return Answer("passed", _where_none(division))


class AbsentClass(CodedCheck):
    """EQ003: where a part lacks a class, nothing can be learned or measured for it there."""

    code = "EQ003"
    title = "class absent from a part"
    question = "Does a part of a round lack a class?"

    def answer(self, division: Division) -> Answer:
        """Name the parts and the classes they lack."""
        lacking = []
        for round_name, part in division.parts.items():
            images = count_images(division.classes, part)
            for number, part_name in enumerate(part.categories):
                absent = _absent_classes(images[:, number], division.manifest.classes)
                if absent:
                    lacking.append(f"no {absent} in {part_name} of {round_name}")
        if not lacking:
            return Answer("passed")
        return Answer("failed", first_of(lacking))


class PlanOutsideTrain(CodedCheck):
    """EQ004: a repeated or augmented copy of a val or test image was trained on.

    `written_plan_within_train` answers it once there is a plan.
    """

    code = "EQ004"
    title = "resampled row outside train"
    question = "Does the plan of a scenario draw a row that is not in train?"

    def answer(self, division: Division) -> Answer:
        """A split alone has no plan."""
        return Answer("not applicable", "no plan yet")


class TooFewPatients(CodedCheck):
    """EQ005: a kind of patient so rare that it cannot be in every part."""

    code = "EQ005"
    title = "too few patients to stratify"
    question = "Does a set of classes have too few patients for one in every part of every round?"

    def answer(self, division: Division) -> Answer:
        """Name the strata, with the number of their patients and what they had to reach."""
        patient = division.patients.codes
        label = division.manifest.table["label"].to_numpy()
        sides = division.published_sides
        needed = patients_needed(division.scheme, division.folds)
        wanted = f"{needed} folds" if division.scheme == "kfold" else f"{needed} parts"
        too_few = []
        for column, rows in divided_rows(sides, len(label)).items():
            side = f"{published_fold(column, sides)}published train side, " if sides else ""
            strata = named_strata(patient[rows], label[rows], division.manifest.classes)
            for name, patients in strata.items():
                count = len(patients)
                if count < needed:
                    too_few.append(f"{side}{name}: {counted(count, 'patient')} for {wanted}")
        if not too_few:
            return Answer("passed")
        return Answer("failed", first_of(too_few))


class LabelConflict(CodedCheck):
    """EQ006: one picture under two classes: at least one of its labels is wrong."""

    code = "EQ006"
    title = "label conflict"
    question = "Does a picture bear two labels, without anybody vouching for them?"

    def answer(self, division: Division) -> Answer:
        """Name pictures that nobody vouched for, and count the quarantined files."""
        conflicting = self._images_in_conflict(division)
        trusted = division.manifest.meta.get("trusted") or []
        vouched_for = conflicting["image_id"].isin(trusted)
        doubted = conflicting["picture"][~vouched_for]
        unsure = conflicting[conflicting["picture"].isin(doubted)]
        sentences = []
        if len(unsure):
            pictures = counted(unsure["picture"].nunique(), "picture")
            sentences.append(f"{pictures} under two classes: {self._examples(unsure)}")
        quarantined = division.manifest.meta.get("label_conflicts")
        if quarantined:
            files = "file is" if quarantined == 1 else "files are"
            sentences.append(
                f"{quarantined} {files} quarantined until their label is decided, see the quarantine list"
            )
        if sentences:
            return Answer("failed", ". ".join(sentences))
        if conflicting.empty:
            return Answer("passed")
        pictures = counted(conflicting["picture"].nunique(), "picture")
        return Answer("passed", f"{pictures} under two classes, vouched for")

    @staticmethod
    def _images_in_conflict(division: Division) -> pd.DataFrame:
        """Rows of the manifest whose picture appears in more than one class."""
        images = count_images(division.pictures, division.classes)
        in_conflict = np.count_nonzero(images, axis=1) > 1
        return division.manifest.table[in_conflict[division.pictures.codes]]

    @staticmethod
    def _examples(unsure: pd.DataFrame) -> str:
        """Up to three pictures, with up to three of their images and classes."""
        examples = []
        for picture in unsure["picture"].unique()[:3]:
            same = unsure.loc[unsure["picture"] == picture, ["image_id", "class_name"]]
            images = [
                f"'{image}' ({class_name})"
                for image, class_name in same[:3].itertuples(index=False)
            ]
            examples.append(" and ".join(images))
        return "; ".join(examples)


class GiantPatient(CodedCheck):
    """EQ009: one patient on whom a part or a class hangs.

    Often it is no patient at all, but a word for "not known" or a number such as 999.
    """

    code = "EQ009"
    title = "one patient weighs too much"
    question = "Has one patient more than a third of the images of a class, or of a part?"
    advice = (
        "Where such an id stands for patients who are not known, map it to nothing "
        "(ingest.aliases: {ID: ''}); else keep fewer of its images, or get more patients"
    )

    def answer(self, division: Division) -> Answer:
        """Name these patients, with their share of each class and of each part, where it is largest."""
        sentences = []
        for giant in _giants(division.patients, division.classes):
            sentences.append(f"{giant} of class {giant.kind}")
        rounds_of: dict[tuple[str, str], list[tuple[_Giant, str]]] = {}
        for round_name, part in division.parts.items():
            for giant in _giants(division.patients, part):
                same_part = rounds_of.setdefault((giant.kind, giant.patient), [])
                same_part.append((giant, round_name))
        for same_part in rounds_of.values():
            largest, round_name = max(same_part, key=lambda item: item[0].share)
            sentence = f"{largest} of {largest.kind} in {round_name}"
            num_others = len(same_part) - 1
            if num_others:
                sentence += f", and more than a third in {counted(num_others, 'other round')}"
            sentences.append(sentence)
        if not sentences:
            return Answer("passed")
        return Answer("failed", f"{first_of(sentences)}. {self.advice}")


class OfficialOverlap(CodedCheck):
    """EQ-OFFICIAL: the published train and test share patients or pictures.

    Published sides are kept as they are, so this is a finding and no error. Results are also given
    without the shared rows, and nothing is registered.
    """

    code = "EQ-OFFICIAL"
    title = "official sides share patients or pictures"
    question = "Do the published train and test sides share a patient or a picture?"

    def answer(self, division: Division) -> Answer:
        """Count what is shared, and name the first few with their images on each side."""
        if not division.published_sides:
            return Answer("not applicable", "the split is our own")
        overlap = division.published_overlap
        if not overlap.by_fold:
            return Answer("passed")
        shared = []
        if overlap.patients:
            shared.append(counted(len(overlap.patients), "patient"))
        if overlap.pictures:
            shared.append(counted(len(overlap.pictures), "picture"))
        number = len(overlap.patients) + len(overlap.pictures)
        verb = "is" if number == 1 else "are"
        return Answer(
            "failed",
            f"{' and '.join(shared)} {verb} on both published sides; results are also given without "
            f"the shared rows. {'; '.join(overlap.by_fold)}",
        )


CHECKS: tuple[CodedCheck, ...] = (
    PatientOnTwoSides(),
    PictureOnTwoSides(),
    AbsentClass(),
    PlanOutsideTrain(),
    TooFewPatients(),
    LabelConflict(),
    GiantPatient(),
    OfficialOverlap(),
)


# --- what several checks need ---------------------------------------------------------------------


class _Leak(NamedTuple):
    """A patient or picture in more than one part: its name, how many images are where, the round."""

    group: str
    spread: str
    where: str


def _first_leak(division: Division, groups: pd.Categorical) -> _Leak | None:
    """Look through every round; EQ-OFFICIAL looks at the test rows of published sides."""
    for round_name, part in division.parts.items():
        if division.published_sides:
            ours = part != "test"
            spread = spread_groups(groups[ours], part[ours])
        else:
            spread = spread_groups(groups, part)
        for group, places in spread.items():
            return _Leak(group, places, where=f"{division.file}, {round_name}")
    return None


class _Giant(NamedTuple):
    """A patient with a large share of the images of a class or a part."""

    patient: str
    kind: str
    images: int
    all_images: int

    @property
    def share(self) -> float:
        """Of the images, 0..1."""
        return self.images / self.all_images

    def __str__(self) -> str:
        return (
            f"patient '{self.patient}' has {self.images} of {counted(self.all_images, 'image')} "
            f"({100 * self.share:.0f} %)"
        )


def _giants(patients: pd.Categorical, kinds: pd.Categorical) -> list[_Giant]:
    """The patients who have more than `_GIANT_SHARE` of the images of a class or a part.

    Where there are two or three patients with as many images each, none of them is a giant.

    Args:
        patients: The patient of each image.
        kinds: The class or the part of each image.
    """
    giants = []
    for kind, images in zip(kinds.categories, count_images(patients, kinds).T):
        present = images[images > 0]
        if not present.size:
            continue
        limit = _GIANT_SHARE * present.sum()
        if present.size > 1:
            limit = max(limit, np.median(present))
        for patient in np.flatnonzero(images > limit):
            giant = _Giant(
                patient=patients.categories[patient],
                kind=kind,
                images=int(images[patient]),
                all_images=int(present.sum()),
            )
            giants.append(giant)
    return giants


def _where_none(division: Division) -> str:
    """An addition to "passed" where EQ-OFFICIAL has found something."""
    if division.published_sides and division.published_overlap.by_fold:
        return "none inside the published train side; see EQ-OFFICIAL"
    return ""


def _absent_classes(images: np.ndarray, classes: Sequence[str]) -> str:
    """Names of the classes without an image; "image" where there is none at all."""
    if not images.any():
        return "image"
    return "/".join(name for name, count in zip(classes, images) if not count)
