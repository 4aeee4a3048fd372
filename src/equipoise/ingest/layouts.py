"""How the folders of own images are meant: which ones are published sides, which ones are classes.

Sides are told by their names (`Training`, `test_set`), at any level. The classes are on the level
on which `ingest.positive_class` is found, because nobody but the user knows the disease. What
cannot be told is refused with what was found.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import PurePosixPath

from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.text import counted, in_words
from equipoise.core.yaml_text import shortly_written, written
from equipoise.ingest.datasets.base import Unrecognised
from equipoise.ingest.spellings import class_key, remarks_on_alike

#: Names of the folders that a file lies in, the outermost first.
Folders = tuple[str, ...]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TRAIN = _words(
    "train training trainings trainval trn entrainement entraînement apprentissage entrenamiento "
    "treino treinamento addestramento trening treningowy treningowe eğitim обучение обучающая тренировочная "
    "训练 训练集 訓練 訓練集 学習 학습 훈련"
)
_VAL = _words(
    "val valid validation dev development validierung validierungs validacion validación validação "
    "validazione validatie walidacja walidacyjny doğrulama валидация валидационная 验证 验证集 驗證 驗證集 検証 검증"
)
_TEST = _words(
    "test testing tst holdout prueba pruebas teste testowy testowe тест тестовая тестирование "
    "测试 测试集 測試 測試集 テスト 테스트"
)
#: Means test where there is no other test folder, else what val means.
_EVAL = _words("eval evaluation")
_SIDE_WORDS = _TRAIN | _VAL | _TEST | _EVAL
#: Words beside the one that names a side: `test_set`, `Training Data`, `test_list.txt`.
_FILLING = _words(
    "set sets data dataset image images imgs split folder samples list txt csv daten datensatz bilder "
    "données datos dados immagini imágenes"
)
#: `Train and Validation Set`
_AND = _words("and und et y e")
#: What is called so has no label: it is no class.
_UNLABELLED = _words(
    "unlabeled unlabelled unannotated pred preds prediction predictions inference submission"
)
#: `a. Training Set`, `(b) test`
_LETTER_BEFORE = re.compile(r"^\(?[a-z][.)]\s*(?=\w)", re.I)
#: `trainset`, `testdata`
_JOINED = re.compile(rf"({'|'.join(sorted(_SIDE_WORDS))})({'|'.join(sorted(_FILLING))})")
#: Names that a sentence shows.
_NAMED = 8


def spelled(name: str) -> str:
    """A name as it is shown: accents composed (NFC), no blanks at its ends.

    >>> spelled(" Me\u0301lanome ") == "M\u00e9lanome"
    True
    """
    return unicodedata.normalize("NFC", name).strip()


# --- published sides ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SideName:
    """A folder name that speaks of a published side.

    Attributes:
        word: The word that does, for example training.
        rest: The other words that mean something, in lower case.
        number: The numbers beside it, as in `1_train` or `test2019`.
    """

    word: str
    rest: str
    number: str = ""


@functools.cache  # asked for every file, of a handful of folders
def side_name(folder: str) -> SideName | None:
    """Read a folder's name as that of a published side; None where it speaks of none, or of two.

    Train and validation together are train.

    >>> side_name("Train_Set"), side_name("ISIC-testing")
    (SideName(word='train', rest='', number=''), SideName(word='testing', rest='isic', number=''))
    """
    bare = _LETTER_BEFORE.sub("", spelled(folder))
    apart = re.sub(r"(?<=[a-z])(?=[A-Z0-9])", " ", bare)
    words = re.split(r"[\W_]+", _JOINED.sub(r"\1 \2", apart.casefold()))
    sides = [word for word in words if word in _SIDE_WORDS]
    if not sides or (len(sides) > 1 and not set(sides) <= _TRAIN | _VAL):
        return None
    others = [word for word in words if word and word not in _SIDE_WORDS | _FILLING | _AND]
    rest = [word for word in others if not word.isdecimal()]
    numbers = [word for word in others if word.isdecimal()]
    return SideName(sides[0], " ".join(rest), " ".join(numbers))


def sides_of(folders: Collection[str]) -> dict[str, str]:
    """The published side, train or test, of every folder of a level; empty where they are no sides.

    They are sides when each name holds one word for a side and the rest is the same in all.
    Validation counts as train: val is drawn by `split`.

    >>> sides_of(["Training", "Testing"])
    {'Training': 'train', 'Testing': 'test'}
    >>> sides_of(["train", "masks"])
    {}
    """
    names = {folder: side_name(folder) for folder in folders}
    rests = {name.rest if name else None for name in names.values()}
    if len(rests) != 1 or None in rests or _are_folds(names.values()):
        return {}
    return _sides_by_words({folder: name for folder, name in names.items() if name})


def _sides_by_words(names: Mapping[str, SideName]) -> dict[str, str]:
    """The side of every folder, by the word for it."""
    words = {name.word for name in names.values()}
    test_words = _TEST if words & _TEST else _TEST | _EVAL
    return {
        folder: "test" if name.word in test_words else "train" for folder, name in names.items()
    }


def _are_folds(names: Collection[SideName | None]) -> bool:
    """Whether the numbers of sides may be those of folds, as in train1, test1, train2, test2."""
    words = Counter(name.word for name in names if name)
    numbers = Counter(name.number for name in names if name)
    return max(words.values()) > 1 and max(numbers.values()) > 1


def side_of_one(folder: str) -> str:
    """The published side, train or test, of a folder that is called like nothing else; else nothing.

    >>> side_of_one("2_Val"), side_of_one("Testing"), side_of_one("test lung")
    ('train', 'test', '')
    """
    name = side_name(folder)
    return sides_of([folder])[folder] if name and not name.rest else ""


@dataclass(frozen=True)
class Sides:
    """Where the folders of published sides are.

    Attributes:
        level: Position of their names in a path, 0 for the outermost folder; None without sides.
        side_of: Folder name -> train or test.
    """

    level: int | None
    side_of: Mapping[str, str]

    def of(self, folders: Folders) -> str:
        """The published side of a file, train or test; empty where it lies in none."""
        if self.level is None or len(folders) <= self.level:
            return ""
        return self.side_of.get(folders[self.level], "")

    def without(self, folders: Folders) -> Folders:
        """The folders of a file but for that of its side."""
        if self.level is None:
            return folders
        return folders[: self.level] + folders[self.level + 1 :]

    def remarks(self, folders_of_files: Iterable[Folders]) -> list[str]:
        """What was recognised, in words."""
        if self.level is None:
            return []
        told = []
        for side in ("train", "test"):
            names = [name for name, its in self.side_of.items() if its == side]
            if names:
                told.append(f"{_shown(names)} as {side}")
        outside = sum(not self.of(folders) for folders in folders_of_files)
        if outside:
            told.append(f"{counted(outside, 'image')} in none of them")
        return [f"published sides: {', '.join(told)}"]


def find_sides(folders_of_files: Iterable[Folders], name_classes: bool = True) -> Sides:
    """Find the level whose folders all speak of published sides.

    Args:
        folders_of_files: Folders of every image.
        name_classes: Whether folders name the classes too. Where a table does, whatever else is in the
            name of a side (`Calc-Training_P_00005_LEFT_CC`) is no class, and nothing has to be refused.

    Raises:
        DataError: When some folders of a level are sides and others are not.
    """
    counts = Counter(folders_of_files)
    depth = max(map(len, counts), default=0)
    for level in range(depth):
        names = {folders[level] for folders in counts if len(folders) > level}
        sides = sides_of(names)
        if sides:
            return Sides(level, sides)
        named = _folders_of_sides(names)
        if not named:
            continue
        if not name_classes:
            return Sides(level, _sides_by_words(named))
        _refuse_mixture(names, named, level, counts)
    return Sides(None, {})


def _folders_of_sides(names: Collection[str]) -> dict[str, SideName]:
    """The folders of a level that speak of sides, where train is among them and another side, too."""
    side_names = {name: side for name in names if (side := side_name(name))}
    words = {side.word for side in side_names.values()}
    is_divided = words & _TRAIN and words & (_VAL | _TEST | _EVAL)
    return side_names if is_divided else {}


def _refuse_mixture(
    names: Collection[str],
    side_names: Mapping[str, SideName],
    level: int,
    counts: Counter[Folders],
) -> None:
    """Refuse a level on which sides and other folders stand beside each other."""
    others = sorted(set(names) - set(side_names))
    if not others:
        raise DataError(
            f"The folders {_shown(names)} name a published side and something else. Sides are told "
            f"by their folders: train/CLASS/... and test/CLASS/... are expected (links will do). Leave out "
            f"what is no side of this study with ingest.skip."
        )
    images_of_name = _images_of_names(counts, level)
    told = [f"{other} ({counted(images_of_name[other], 'image')})" for other in others]
    places = {
        names[: level + 1] for names in counts if len(names) > level and names[level] in others
    }
    patterns = [_pattern(place, counts) for place in sorted(places)]
    raise DataError(
        f"The folders {_shown(side_names)} look like published sides, and beside them lie "
        f"{_shown(told)}. Leave out what is no side with {_skip(patterns)}, or rename it."
    )


def _pattern(place: Folders, counts: Iterable[Folders]) -> str:
    """A pattern of `ingest.skip` for one folder, and for no other of its name.

    >>> _pattern(("data",), [("data", "a"), ("train", "a")])
    'data/'
    >>> _pattern(("data", "data"), [("data", "train"), ("data", "data", "train")])
    'data/data/'
    >>> _pattern(("data",), [("data", "a"), ("train", "data", "a")])
    '/data/'
    """
    name = place[-1]
    is_elsewhere = any(name in folders and folders[: len(place)] != place for folders in counts)
    if not is_elsewhere:
        return f"{name}/"
    return f"{'/' if len(place) == 1 else ''}{'/'.join(place)}/"


def _skip(patterns: Sequence[str]) -> str:
    """The setting that leaves folders out, as it is written in params.yaml.

    >>> _skip(["more/", "#2/"])
    'ingest.skip: [more/, "#2/"]'
    """
    return f"ingest.skip: [{', '.join(map(written, patterns[:_NAMED]))}]"


# --- classes --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What messages say of a raw folder.

    Attributes:
        raw: Where it lies.
        left_out: Its other files, by kind and count; empty where there are none.
    """

    raw: str
    left_out: str = ""


@dataclass(frozen=True)
class Classes:
    """Where the folders of classes are.

    Attributes:
        level: Position of their names in a path without its side, 0 for the outermost folder.
        class_of: Folder name -> class.
        positive: The class that `ingest.positive_class` means, as it is shown.
        remarks: What was recognised, and what may be meant otherwise.
    """

    level: int
    class_of: Mapping[str, str]
    positive: str
    remarks: tuple[str, ...]

    def of(self, folders: Folders) -> str:
        """The class of a file.

        Raises:
            Unrecognised: When it lies in no class folder.
        """
        if len(folders) <= self.level:
            raise Unrecognised("the file lies in no class folder")
        return self.class_of[folders[self.level]]

    @property
    def names(self) -> list[str]:
        """The classes, sorted."""
        return sorted(set(self.class_of.values()))


def find_classes(
    folders_of_files: Iterable[Folders],
    positive_class: str | None,
    idle_folders: Sequence[str],
    where: Place,
    patients_below: bool = False,
) -> Classes:
    """Find the level of the classes: the one on which the positive class is a folder.

    Args:
        folders_of_files: Folders of every image, without those of sides.
        positive_class: `ingest.positive_class`.
        idle_folders: Relative paths of folders without an image, which are no classes.
        where: The raw folder, for messages.
        patients_below: Whether the folders below those of the classes are known to be patients.

    Raises:
        ConfigError: When the positive class is not named, or is no folder.
        DataError: When there are fewer than two classes, or folders of classes lie on several levels.
    """
    counts = Counter(folders_of_files)
    levels = _levels_of(counts, positive_class)
    if not levels:
        raise _no_such_class(counts, positive_class, idle_folders, where)
    level = levels[0]
    images_of_name = _images_of_names(counts, level)
    class_of = _join_spellings(images_of_name)
    if len(set(class_of.values())) < 2:
        raise _too_few_classes(images_of_name, counts, where)
    _refuse_several_levels(counts, level, set(map(class_key, images_of_name)))
    positive = next(
        name for name in class_of.values() if class_key(name) == class_key(positive_class or "")
    )
    remarks = _remarks_on_spellings(images_of_name, class_of)
    remarks += remarks_on_alike(list(set(class_of.values())))
    remarks += _remarks_on_unlabelled(images_of_name, positive)
    remarks += _remarks_on_half_sides(counts, level)
    if len(levels) > 1:
        remarks.append(
            f"folders called {positive} lie on {len(levels)} levels; the classes are taken from the one with "
            f"{_shown(set(class_of.values()))}"
        )
    if level:
        above = {"/".join(folders[:level]) for folders in counts if len(folders) > level}
        number = counted(len(above), "folder")
        remarks.append(f"the classes are the folders below {number} ({_shown(above)})")
    elif not patients_below:
        question = _question(counts, level)
        if question:
            remarks.append(f"{question} Then name one of them in ingest.positive_class")
    return Classes(level, class_of, positive, tuple(remarks))


def _refuse_several_levels(counts: Counter[Folders], level: int, classes: set[str]) -> None:
    """Refuse folders called like classes beside or above those that are: `a`, `b`, and `old/a`, `old/b`."""
    too_high = {
        folders
        for folders in counts
        if len(folders) <= level and any(class_key(name) in classes for name in folders)
    }
    keys_below: dict[str, set[str]] = {}
    for folders in counts:
        if len(folders) > level:
            keys = set(map(class_key, folders[level + 1 : level + 2])) or {""}
            keys_below.setdefault(folders[level], set()).update(keys)
    holding = {name for name, keys in keys_below.items() if len(keys) > 1 and keys <= classes}
    if holding:
        images = sum(_images_of_names(counts, level)[name] for name in holding)
        patterns = [f"{name}/" for name in sorted(holding)]
        raise DataError(
            f"Inside of {_shown(holding)} lie folders called like the classes beside it "
            f"({counted(images, 'image')}). Leave out what is no class with {_skip(patterns)}, or bring "
            f"all folders of classes to one level."
        )
    if len(too_high) > 1:  # a single one is quarantined with its reason
        images = sum(counts[folders] for folders in too_high)
        of_level = {"/".join(folders[: level + 1]) for folders in counts if len(folders) > level}
        outermost = {folders[0] for folders in counts if len(folders) > level}
        above = sorted(name for name in outermost if class_key(name) not in classes)
        patterns = [f"{name}/" for name in above]
        advice = (
            f"; where they are repeated, leave them out with {_skip(patterns)}" if above else ""
        )
        raise DataError(
            f"Folders of classes lie on several levels: {_shown(of_level)}, and further up "
            f"{_shown(map('/'.join, too_high))} ({counted(images, 'image')}). Bring all of them to one level: "
            f"CLASS/..., or train/CLASS/... and test/CLASS/... (links will do){advice}."
        )


def refuse_unlike_sides(
    folders_of_files: Iterable[Folders], sides: Sides, classes: Classes
) -> None:
    """Refuse published sides that have no class in common: one of them has no labels, or other names.

    Args:
        folders_of_files: Folders of every image, with those of sides.
        sides: The folders of sides.
        classes: The folders of classes.

    Raises:
        DataError: When no class is on both sides.
    """
    names_of_side = _classes_of_sides(folders_of_files, sides, classes)
    train, test = names_of_side["train"], names_of_side["test"]
    if not train or not test or train & test:
        return
    of_test = [name for name, side in sides.side_of.items() if side == "test"]
    patterns = [f"{name}/" for name in sorted(of_test)]
    raise DataError(
        f"No class is on both published sides: the train side holds {_shown(train)}, the test side "
        f"{_shown(test)}. Where the test side has no labels, leave it out with {_skip(patterns)}; else "
        f"give its classes the same names."
    )


def remarks_on_sides(
    folders_of_files: Iterable[Folders], sides: Sides, classes: Classes
) -> list[str]:
    """Which classes a published side lacks.

    Args:
        folders_of_files: Folders of every image, with those of sides.
        sides: The folders of sides.
        classes: The folders of classes.
    """
    remarks = []
    for side, names in _classes_of_sides(folders_of_files, sides, classes).items():
        lacking = set(classes.names) - names
        if names and lacking:
            remarks.append(f"the published {side} side holds no image of {_shown(lacking)}")
    return remarks


def _classes_of_sides(
    folders_of_files: Iterable[Folders], sides: Sides, classes: Classes
) -> dict[str, set[str]]:
    """The classes of which train and test hold images."""
    names_of_side: dict[str, set[str]] = {"train": set(), "test": set()}
    for folders in set(folders_of_files):
        side = sides.of(folders)
        inside = sides.without(folders)
        if side and len(inside) > classes.level:
            names_of_side[side].add(classes.of(inside))
    return names_of_side


def _levels_of(counts: Counter[Folders], positive_class: str | None) -> list[int]:
    """The levels on which the positive class is a folder, the likeliest of the classes first.

    That is one on which most images lie, with the fewest folders: a patient may be called like a
    class, and an archive may hold a folder of its own name.
    """
    if positive_class is None:
        return []
    depth = max(map(len, counts), default=0)
    candidates = []
    for level in range(depth):
        images_of_name = _images_of_names(counts, level)
        names = set(map(class_key, images_of_name))
        if class_key(positive_class) in names:
            is_alone = len(names) < 2
            holds_few = 2 * images_of_name.total() < counts.total()
            candidates.append((is_alone, holds_few, len(names), level))
    return [level for *_, level in sorted(candidates)]


def _images_of_names(counts: Counter[Folders], level: int) -> Counter[str]:
    """Folder name on one level -> how many images lie below it."""
    images: Counter[str] = Counter()
    for folders, count in counts.items():
        if len(folders) > level:
            images[folders[level]] += count
    return images


def _join_spellings(images_of_name: Mapping[str, int]) -> dict[str, str]:
    """Folder name -> class: of several spellings the one with the most images."""
    images_of_spelling: Counter[str] = Counter()
    for name, count in images_of_name.items():
        images_of_spelling[spelled(name)] += count
    shown: dict[str, str] = {}
    for name in sorted(images_of_spelling, key=lambda name: (-images_of_spelling[name], name)):
        shown.setdefault(class_key(name), name)
    return {name: shown[class_key(name)] for name in images_of_name}


def _remarks_on_spellings(
    images_of_name: Mapping[str, int], class_of: Mapping[str, str]
) -> list[str]:
    remarks = []
    for class_name in sorted(set(class_of.values())):
        same = sorted(name for name, its in class_of.items() if its == class_name)
        if len(same) > 1:
            told = [f"{name!r} ({counted(images_of_name[name], 'image')})" for name in same]
            remarks.append(
                f"counted as one class, {class_name}: {in_words(told)}, which differ only in letter "
                f"case, blanks, dashes, zeros or the form of accents"
            )
    return remarks


def _remarks_on_unlabelled(images_of_name: Mapping[str, int], positive: str) -> list[str]:
    """Ask about folders beside those of classes whose names speak of a side, or of no label."""
    remarks = []
    for name in sorted(images_of_name):
        is_unlabelled = spelled(name).casefold() in _UNLABELLED or bool(side_of_one(name))
        if is_unlabelled and class_key(name) != class_key(positive):
            remarks.append(
                f"{name} ({counted(images_of_name[name], 'image')}) counts as a class: where its images have no "
                f"label, leave it out with {_skip([f'{name}/'])}"
            )
    return remarks


def _remarks_on_half_sides(counts: Counter[Folders], class_level: int) -> list[str]:
    """Say it where some folders above those of classes are called like sides, and others are not."""
    remarks = []
    for level in range(class_level):
        names = set(_images_of_names(counts, level))
        sides = {name for name in names if side_name(name)}
        if sides and sides < names:
            remarks.append(
                f"{_shown(sides)} may be a published side, but beside it lie {_shown(names - sides)}: no side is "
                f"told. Where they are sides, call them train and test (links will do)"
            )
    return remarks


def _question(counts: Counter[Folders], level: int) -> str:
    """Ask whether the classes lie one level deeper, where all folders hold the same ones."""
    below: dict[str, set[str]] = {}
    for folders in counts:
        if len(folders) > level:
            below.setdefault(folders[level], set()).update(
                map(class_key, folders[level + 1 : level + 2])
            )
    held = list(below.values())
    same = len(held) > 1 and len(held[0]) > 1 and all(names == held[0] for names in held)
    if not same:
        return ""
    shown = {spelled(folders[level + 1]) for folders in counts if len(folders) > level + 1}
    return f"The folders below {_shown(below)} are {_shown(shown)}: are those the classes?"


def _no_such_class(
    counts: Counter[Folders],
    positive_class: str | None,
    idle_folders: Sequence[str],
    where: Place,
) -> ConfigError | DataError:
    """The error for a positive class that is not named, or that no folder is called."""
    level = _outermost_choice(counts)
    names = _images_of_names(counts, level)
    if len(names) < 2:
        return _too_few_classes(names, counts, where)
    shown = [shortly_written(name) for name in sorted(set(map(spelled, names)))]
    question = _question(counts, level)
    if positive_class is None:
        advice = f" {question}" if question else ""
        return ConfigError(
            f"Name the disease: set ingest.positive_class to one of {', '.join(shown)}. "
            f"Sensitivity speaks of it.{advice}"
        )
    for folder in idle_folders:
        if class_key(PurePosixPath(folder).name) == class_key(positive_class):
            question = f"The folder {folder} is there and holds no image."
    error = unknown_name("class", positive_class, shown, f" in {where.raw}")
    return ConfigError(f"{error} {question}") if question else error


def _outermost_choice(counts: Counter[Folders]) -> int:
    """The outermost level with more than one folder; 0 where there is none."""
    depth = max(map(len, counts), default=0)
    for level in range(depth):
        if len(_images_of_names(counts, level)) > 1:
            return level
    return 0


def _too_few_classes(names: Collection[str], counts: Counter[Folders], where: Place) -> DataError:
    other_files = f" and {where.left_out}" if where.left_out else ""
    return DataError(
        f"{where.raw} needs a folder with images for each class (or train/CLASS, test/CLASS), "
        f"at least two; found: {', '.join(sorted(names)) or 'none'} ({counted(counts.total(), 'image')}"
        f"{other_files}). A table can name the classes instead: ingest.table: {{file, image, label}}."
    )


# --- patients -------------------------------------------------------------------------------------


def patient_folder(folders: Folders, class_level: int, place: str) -> str:
    """The folder of a file that stands for its patient.

    Args:
        folders: The folders of the file, without that of a side.
        class_level: Position of the class folder among them.
        place: below or above the class folder, next to it.

    Raises:
        Unrecognised: When there is no folder there.
    """
    position = class_level + 1 if place == "below" else class_level - 1
    if not 0 <= position < len(folders):
        raise Unrecognised(f"the file lies in no folder {place} its class folder")
    return spelled(folders[position])


def remarks_on_patients(folders_of_files: Iterable[Folders], classes: Classes) -> list[str]:
    """Ask whether the folders next to those of the classes are patients."""
    level = classes.level
    counts = Counter(folders_of_files)
    below = {folders[: level + 2] for folders in counts if len(folders) > level + 1}
    above = {folders[level - 1] for folders in counts if len(folders) > level > 0}
    number_of_place = {"below": len(below), "above": len(above)}
    remarks = []
    for place, number in number_of_place.items():
        if number > 2 * len(classes.names):
            remarks.append(
                f"{number} folders lie {place} those of the classes: if each is a patient, set "
                f"ingest.patient_folder: {place}"
            )
    return remarks


def remarks_on_shared_names(
    folders_of_files: Iterable[Folders], class_level: int, place: str
) -> list[str]:
    """Ask whether patients are one who have one name in several folders: `P1/visit1` and `P2/visit1`.

    Args:
        folders_of_files: Folders of every image, without those of sides.
        class_level: Position of the class folder among them.
        place: below or above the class folder: where the patient's is.
    """
    parents: dict[str, set[str]] = {}
    for folders in set(folders_of_files):
        above = class_level - (place == "above")
        with suppress(Unrecognised):
            name = patient_folder(folders, class_level, place)
            parents.setdefault(name, set()).add("/".join(folders[:above]))
    shared = sorted(name for name, its in parents.items() if len(its) > 1)
    if not shared:
        return []
    return [
        f"{counted(len(shared), 'name')} of patients in several folders, as {shared[0]} in "
        f"{_shown(parents[shared[0]])}: each name is one patient. Where they are not, name the patients in "
        f"ingest.table"
    ]


def folders_of(path: str) -> Folders:
    """Names of the folders that a file lies in."""
    return tuple(path.split("/")[:-1])


def _shown(names: Iterable[str]) -> str:
    ordered = sorted(names)
    further = len(ordered) - _NAMED
    if further > 0:
        return f"{', '.join(ordered[:_NAMED])} and {further} more"
    return in_words(ordered)
