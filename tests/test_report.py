"""One page: complete, self-contained, escaped, the same bytes for the same results."""

import re
from html.parser import HTMLParser

import pytest

import made
from equipoise import compare, records, report, scenario
from equipoise.report import figures

HOSTILE = "<script>alert(1)</script>"
#: Attributes by which a browser loads something.
LOADING = {"src", "srcset", "href", "xlink:href", "data", "poster", "action", "formaction", "background"}


class Reader(HTMLParser):
    """Collects what a page would load, its tags and its text."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.tags, self.text, self.handlers = [], [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attributes if name in LOADING]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def study(folder, **changes):
    changes.setdefault("run", {"scenarios": ["baseline", "oversample", "augment"]})
    changes.setdefault("patients", (60, 40))
    return made.study(folder, **changes)


def page(study, strengths=(1.0, 4.0, -1.0)):
    for name, strength in zip(study.scenarios, strengths):
        made.result(study, name, strength)
    comparison, results = compare.run(study)
    path = report.run(study, comparison, results)
    assert path == study.reports_path / "report.html"
    return comparison, path.read_text(encoding="utf-8")


def test_the_page_says_what_the_comparison_says(folder):
    comparison, html = page(study(folder))
    text = " ".join(Reader(html).text)
    assert comparison["verdict"] in text
    for note in comparison["notes"]:
        assert note in text
    delta = comparison["rows"][made.BACKBONE]["oversample"]["delta"][comparison["primary"]]
    assert f"{delta['value']:+.3f}" in text
    assert "oversample (winner)" in text
    assert comparison["digest"][:12] in text
    assert "specificity at 90 % sensitivity" in text
    assert "EQ001" in text
    assert "nan" not in re.sub(r"[0-9a-f]{20,}", "", text).lower().split()


def test_the_page_has_the_figures_and_loads_nothing(folder):
    _, html = page(study(folder))
    read = Reader(html)
    assert read.tags.count("svg") == 4  # differences, ROC, reliability, distribution
    assert html.count('role="img"') == 4
    assert all(value.startswith("#") for value in read.loads), read.loads
    assert not {"script", "link", "iframe", "object", "embed", "img"} & set(read.tags)
    assert not read.handlers
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"(src|href)\s*=\s*['\"]\s*(https?:)?//", html)
    assert len(html.encode()) < 6_000_000


def test_the_same_results_give_the_same_bytes(folder):
    made_up = study(folder)
    _, html = page(made_up)
    assert page(made_up)[1] == html
    kept = records.read_json(made_up.reports_path / "comparison.json")
    again = report.run(made_up, kept, compare.read_results(made_up))
    assert again.read_text(encoding="utf-8") == html, "from the kept comparison, as the verb `report` does"


def test_a_hostile_class_name_is_text(folder):
    _, html = page(study(folder, classes=("clear", HOSTILE), positive=HOSTILE))
    read = Reader(html)
    assert HOSTILE not in html
    assert "script" not in read.tags
    assert f"Positive class: {HOSTILE}" in " ".join(read.text)


def test_a_hostile_source_and_check_are_text(folder):
    made_up = study(folder)
    for name in made_up.scenarios:
        made.result(made_up, name)
    for path, change in (
        (
            made_up.manifest_path.with_suffix(".json"),
            lambda value: {**value, "source": HOSTILE, "citation": "<img src=x onerror=alert(1)>"},
        ),
        (
            made_up.result_path(made.BACKBONE, "baseline") / "metrics.json",
            lambda value: {**value, "checks": [{**value["checks"][0], "detail": HOSTILE}]},
        ),
    ):
        records.write_json(path, change(records.read_json(path)))
    html = report.run(made_up, *compare.run(made_up)).read_text(encoding="utf-8")
    read = Reader(html)
    assert HOSTILE not in html
    assert not {"script", "img"} & set(read.tags)
    assert not read.handlers
    assert " ".join(read.text).count(HOSTILE) == 2


def test_settings_cannot_close_their_block(folder):
    made_up = study(folder)
    for name in made_up.scenarios:
        made.result(made_up, name)
        path = made_up.result_path(made.BACKBONE, name) / "metrics.json"
        records.write_json(
            path,
            {
                **records.read_json(path),
                "settings": {**records.read_json(path)["settings"], "embed": f"</pre>{HOSTILE}"},
            },
        )
    html = report.run(made_up, *compare.run(made_up)).read_text(encoding="utf-8")
    assert HOSTILE not in html
    assert "script" not in Reader(html).tags


@pytest.mark.parametrize("name", ["a $\\bad$ name", "_below"])
def test_a_class_name_is_never_markup_of_the_drawing_library(folder, name):
    rows = [{"stage": "train", "class_name": other, "images": 3} for other in ("clear", name)]
    assert name in figures.distribution(rows, ["clear", name])


def test_two_backbones_have_a_table_and_curves_each(folder):
    made_up = study(folder, run={"scenarios": ["baseline", "augment"], "backbones": ["vgg16", "densenet201"]})
    for name in made_up.scenarios:
        made.result(made_up, name, backbone="densenet201")
    _, html = page(made_up, (1.0, 1.5))
    read = Reader(html)
    assert read.tags.count("svg") == 7
    text = " ".join(read.text)
    assert "densenet201: ranking and calibration" in text
    assert "vgg16: ranking and calibration" in text


def test_three_classes_have_a_page_without_specificity_at_sensitivity(folder):
    made_up = study(
        folder,
        patients=(40, 30, 20),
        classes=("a", "b", "c"),
        tune={"objective": "auroc"},
        compare={"primary": "auroc"},
    )
    _, html = page(made_up)
    assert "% sensitivity" not in html
    assert Reader(html).tags.count("svg") == 4


def test_results_without_shared_patients_are_shown_beside_those_with_them(folder):
    made_up = made.study(folder, run={"scenarios": ["baseline"]}, split={"scheme": "official"}, official_overlap=3)
    summary = scenario.run(made_up, made.BACKBONE, "baseline")
    comparison, results = compare.run(made_up)
    html = report.run(made_up, comparison, results).read_text(encoding="utf-8")
    images = summary["non_overlapping"]["rows"]["test"]
    assert f"baseline, without shared patients and pictures ({images} images)" in html
    assert "EQ-OFFICIAL" in html


def test_a_page_can_be_made_when_nothing_was_searched(folder):
    made_up = made.study(folder, patients=(20, 3), run={"scenarios": ["baseline"]}, train={"seeds": [0]})
    scenario.run(made_up, made.BACKBONE, "baseline")
    comparison, results = compare.run(made_up)
    html = report.run(made_up, comparison, results).read_text(encoding="utf-8")
    assert "Calibration is the identity" in html
    assert "inner folds fell from 3 to as few as 1" in html
