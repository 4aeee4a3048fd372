"""Every JSON file has one class, which reads back to the byte what it writes, and nothing else."""

import json
import types
import typing
from typing import Any, get_args, get_origin

import pytest
from pydantic import BaseModel, RootModel

from equipoise.core import documents
from equipoise.core.documents import Document
from equipoise.core.errors import DataError


def _subclasses(kind: type) -> list[type]:
    direct = kind.__subclasses__()
    return direct + [below for child in direct for below in _subclasses(child)]


DOCUMENTS = sorted(
    (
        kind
        for kind in {*_subclasses(Document), documents.Choices}
        if kind.__module__ == documents.__name__
    ),
    key=lambda kind: kind.__name__,
)
SAMPLES = {str: "text", int: 3, float: 0.25, bool: True, Any: {"key": [1, None]}}


def sample(kind: Any, optional: bool) -> Any:
    """Plain data that a field of this kind takes.

    Args:
        kind: An annotation.
        optional: Whether fields are filled that have a default.
    """
    origin = get_origin(kind)
    if kind in SAMPLES:
        return SAMPLES[kind]
    if origin is typing.Annotated:
        return sample(get_args(kind)[0], optional)
    if origin is typing.Literal:
        return get_args(kind)[0]
    if origin in (typing.Union, types.UnionType):
        return sample(get_args(kind)[0], optional)
    if origin is dict:
        return {sample(get_args(kind)[0], optional): sample(get_args(kind)[1], optional)}
    if origin in (list, tuple):
        return [sample(get_args(kind)[0], optional)]
    if issubclass(kind, RootModel):
        return sample(kind.model_fields["root"].annotation, optional)
    return {
        field.alias or name: sample(field.annotation, optional)
        for name, field in kind.model_fields.items()
        if optional or field.is_required()
    }


def fields_of(kind: type[BaseModel]) -> type[BaseModel]:
    """The class that has the fields: for a list of entries, that of an entry."""
    if issubclass(kind, RootModel):
        (entry,) = get_args(kind.model_fields["root"].annotation)
        return entry
    return kind


def write(path, contents):
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def changed(kind: type[BaseModel], **changes: Any) -> Any:
    """A sample of a document with some keys changed, in the first entry where it is a list."""
    contents = sample(kind, optional=True)
    if isinstance(contents, list):
        return [contents[0] | changes]
    return contents | changes


def test_the_files_of_every_stage_are_documents():
    assert {
        documents.IngestSummary,
        documents.SplitSummary,
        documents.FeatureSummary,
        documents.Choices,
        documents.ScenarioSummary,
        documents.ServedModel,
        documents.Comparison,
    } <= set(DOCUMENTS)


@pytest.mark.parametrize("optional", [True, False], ids=["all fields", "required fields"])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_document_is_written_as_it_was_read(tmp_path, kind, optional):
    write(tmp_path / "a.json", sample(kind, optional))
    first = kind.read(tmp_path / "a.json")
    first.write(tmp_path / "b.json")
    second = kind.read(tmp_path / "b.json")
    second.write(tmp_path / "c.json")
    assert first == second
    assert (tmp_path / "b.json").read_bytes() == (tmp_path / "a.json").read_bytes()
    assert (tmp_path / "c.json").read_bytes() == (tmp_path / "a.json").read_bytes()


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_field_that_was_never_set_is_not_written(tmp_path, kind):
    kind.model_validate(sample(kind, optional=False)).write(tmp_path / "a.json")
    contents = json.loads((tmp_path / "a.json").read_text())
    entry = contents[0] if isinstance(contents, list) else contents
    fields = fields_of(kind).model_fields
    assert list(entry) == [name for name, field in fields.items() if field.is_required()]


def test_a_field_that_was_set_to_its_default_is_written(tmp_path):
    short = {"code": "EQ001", "answer": "none", "detail": ""}
    assert documents.CheckAnswer(**short).as_dict() == short
    assert documents.CheckAnswer(**short, name="").as_dict() == {
        "code": "EQ001",
        "name": "",
        "answer": "none",
        "detail": "",
    }


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_an_unknown_key_is_named_with_its_file(tmp_path, kind):
    write(tmp_path / "a.json", changed(kind, unheard_of=1))
    with pytest.raises(
        DataError, match=r"a\.json does not hold .*unheard_of: Extra inputs"
    ) as said:
        kind.read(tmp_path / "a.json")
    assert str(said.value).endswith("Run the stage that writes it again.")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_value_of_a_wrong_kind_is_named_with_its_file(tmp_path, kind):
    for name, field in fields_of(kind).model_fields.items():
        wrong = "text" if get_origin(field.annotation) is dict else {"key": ["of a mapping"]}
        write(tmp_path / "a.json", changed(kind, **{name: wrong}))
        with pytest.raises(DataError, match=rf"a\.json does not hold .*\b{name}\b"):
            kind.read(tmp_path / "a.json")


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_every_lacking_key_is_named_with_its_file(tmp_path, kind):
    for name, field in fields_of(kind).model_fields.items():
        if not field.is_required():
            continue
        contents = sample(kind, optional=True)
        entry = contents[0] if isinstance(contents, list) else contents
        del entry[name]
        write(tmp_path / "a.json", contents)
        with pytest.raises(DataError, match=rf"a\.json does not hold .*\b{name}: Field required"):
            kind.read(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["", "{", "[1]", "5", "null"])
@pytest.mark.parametrize("kind", DOCUMENTS)
def test_a_file_that_holds_something_else_is_a_data_error(tmp_path, kind, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError, match=r"a\.json"):
        kind.read(tmp_path / "a.json")


def test_a_missing_file_says_what_to_run(tmp_path):
    with pytest.raises(DataError, match=r"There is no .*absent\.json. Run `dvc repro`"):
        documents.ServedModel.read(tmp_path / "absent.json")


def test_a_number_that_does_not_exist_is_null_in_the_file_and_none_when_read(tmp_path):
    contents = changed(documents.Comparison, controls=None)
    contents["controls"] = {
        "metadata_only": {"value": float("nan"), "low": None, "high": float("inf")},
        "permuted_labels": {},
    }
    documents.Comparison.model_validate(contents).write(tmp_path / "a.json")
    interval = documents.Comparison.read(tmp_path / "a.json").controls.metadata_only
    assert (interval.value, interval.low, interval.high) == (None, None, None)


def test_a_document_cannot_change():
    served = documents.ServedModel.model_validate(sample(documents.ServedModel, optional=True))
    with pytest.raises(ValueError, match="frozen"):
        served.backbone = "vgg16"
