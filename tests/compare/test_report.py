"""One page: complete, self-contained, escaped, the same bytes for the same results, and alive in a real browser."""

import base64
import hashlib
import http.server
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import threading
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score, roc_curve

from equipoise.compare import card, evidence, wording
from equipoise.compare import results as results_
from equipoise.compare import stage as compare
from equipoise.compare.report import curves, figures, ranking, template
from equipoise.compare.report import page as report
from equipoise.compare.report.mistakes import Mistake
from equipoise.core import config, documents, environment, files
from equipoise.evaluation import patients
from equipoise.scenario import stage as scenario
from fabricate import comparisons, made

HOSTILE = "</script><script>alert(1)</script><!--"
IMAGE = "<img src=x onerror=alert(1)>\u2028"
#: Attributes by which a browser loads something.
LOADING = {
    "src",
    "srcset",
    "href",
    "xlink:href",
    "data",
    "poster",
    "action",
    "formaction",
    "background",
}
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-sync"
FLAGS += " disable-component-update disable-dev-shm-usage remote-debugging-pipe"


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


class Browser:
    """Headless Chromium, spoken to over its debugging pipe; keeps every event."""

    def __init__(self, folder):
        to_us, from_browser = os.pipe()
        to_browser, from_us = os.pipe()
        self.reading, self.writing, self.rest, self.events, self.number = to_us, from_us, b"", [], 0
        # The browser reads from its third and writes to its fourth file; a shell knows single digits only.
        copies = f"os.dup2({to_browser}, 3); os.dup2({from_browser}, 4)"
        wired = f"import os, sys; {copies}; os.execv(sys.argv[1], sys.argv[1:])"
        command = [sys.executable, "-c", wired, CHROMIUM, *(f"--{flag}" for flag in FLAGS.split())]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self.session = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = {
            "sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)[
                "sessionId"
            ]
        }
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def receive(self):
        while b"\0" not in self.rest:
            assert select.select([self.reading], [], [], 60)[0], "the browser says nothing"
            self.rest += os.read(self.reading, 1 << 16)
        message, self.rest = self.rest.split(b"\0", 1)
        return json.loads(message)

    def call(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params, **self.session}
        os.write(self.writing, json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def open(self, path, width=1200):
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        self.events.clear()
        loader = self.call("Page.navigate", url=path.resolve().as_uri())["loaderId"]
        while not any(self.loaded(event, loader) for event in self.events):
            self.events.append(self.receive())

    @staticmethod
    def loaded(event, loader):
        told = event["params"]
        return event["method"] == "Page.lifecycleEvent" and (told["loaderId"], told["name"]) == (
            loader,
            "load",
        )

    def run(self, script):
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=KEYS[key],
            )

    def complaints(self):
        self.run("1")
        loud = {
            "Log.entryAdded",
            "Runtime.exceptionThrown",
            "Runtime.consoleAPICalled",
            "Page.javascriptDialogOpening",
        }
        return [event["params"] for event in self.events if event["method"] in loud]

    def requests(self):
        sent = [event for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [event["params"]["request"]["url"] for event in sent]

    def numbers(self):
        script = "Object.fromEntries([...document.querySelectorAll('data')].map(cell => [cell.id, +cell.value]))"
        return self.run(script)

    def close(self):
        self.call("Browser.close")
        self.process.wait(20)


KEYS = {"Home": 36, "ArrowRight": 39, "End": 35, "Tab": 9, "Enter": 13}


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    opened = Browser(tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A study whose scenarios were run, with its comparison, results and page; three folds, two seeds."""
    folder = tmp_path_factory.mktemp("real")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made_up = made.study(
            folder,
            patients=(40, 30),
            run={"scenarios": ["baseline", "oversample"]},
            split={"scheme": "kfold"},
            tune={"trials": 10},
        )
        for name in made_up.scenarios:
            scenario.run(made_up, made.BACKBONE, name)
        comparison, results = compared(made_up)
        path = folder / report.write(made_up, comparison, results)
        html = path.read_text(encoding="utf-8")
        again = report.write(made_up, comparison, results)
        assert again.read_text(encoding="utf-8") == html, "the same numbers give the same bytes"
    return comparison, results, path, html


def study(folder, **changes):
    changes.setdefault("run", {"scenarios": ["baseline", "oversample"]})
    changes.setdefault("patients", (60, 40))
    return made.study(folder, **changes)


def compared(study):
    """The comparison as it stands in evidence.json, and the results behind it."""
    comparison, results = compare.run(study)
    return comparison, results


def page(study, strengths=(1.0, 4.0, -1.0)):
    for name, strength in zip(study.scenarios, strengths):
        made.result(study, name, strength)
    comparison, results = compared(study)
    path = report.write(study, comparison, results)
    assert path == study.reports_path / "report.html"
    return comparison, path.read_text(encoding="utf-8")


def test_the_page_says_what_the_comparison_says(real):
    comparison, _, _, html = real
    text = " ".join(" ".join(Reader(html).text).split())
    for sentence in wording.verdict(comparison):
        assert sentence in text
    for note in comparison.notes:
        assert note in text
    row = comparison.rows[made.BACKBONE]["oversample"]
    assert row.reason in text
    assert row.reason in comparison.verdict
    delta = row.delta[comparison.primary]
    assert f"{delta.value:+.4f}" in text
    assert f"{delta.low:+.4f} to {delta.high:+.4f}" in text
    assert f"{wording.rounded_up(delta.detectable):g}" in text
    assert card.claim(comparison, made.BACKBONE, comparison.winners[made.BACKBONE]) in text
    found = row.per_1000["patients"]["locked"].positives_found
    assert f"{round(found.value):+d}" in text or not round(found.value)
    assert "Differences to the baseline per 1,000 patients, 429 of them opacity" in text
    assert comparison.digest in text
    for check in comparison.checks:
        assert check.code in text
    assert "nan" not in re.sub(r"[0-9a-f]{20,}", "", text).lower().split()
    order = re.findall(r'<h2 id="(\w+)"', html)
    assert order[:7] == [
        "verdict",
        "scenarios",
        "notes",
        "ranking",
        "calibration",
        "decision",
        "slider",
    ]
    assert order[7:] == [
        "distribution",
        "checks",
        "subgroups",
        "search",
        "mistakes",
        "again",
        "card",
    ]
    assert "dvc repro compare@made" in text


#: verdict -> value, low and high end of a difference that has it.
FOUR = {
    "better": (0.03, 0.012, 0.048),
    "worse": (-0.02, -0.035, -0.005),
    "equivalent": (-0.0004, -0.0009, 0.0002),
    "inconclusive": (0.0075, -0.004, 0.019),
}


def four_rows(**fields):
    """A row for each verdict, and the baseline's; a scenario is called after its verdict."""
    rows = {"baseline": comparisons.row()}
    for verdict, (value, low, high) in FOUR.items():
        delta = documents.Difference(
            value=value, low=low, high=high, detectable=0.0176, patients_to_settle=1234.5
        )
        rows[verdict] = comparisons.rival(verdict, delta, reason=f"It is {verdict}.", **fields)
    return {made.BACKBONE: rows}


def test_the_forest_tells_verdicts_by_word_marker_and_colour():
    compared = comparisons.comparison(four_rows(), comparisons=4, margin=0.01)
    drawn = figures.forest(compared)
    for verdict, (value, low, high) in FOUR.items():
        assert f">{value:+.4f} ({low:+.4f} to {high:+.4f})<" in drawn.svg
        assert f">{verdict}<" in drawn.svg
        assert f">{verdict} {value:+.4f}<" in drawn.narrow
        look = figures.VERDICTS[verdict]
        assert look.colour in drawn.svg
        assert f"{verdict}: {look.words}" in drawn.caption
        assert [f"{made.BACKBONE}, {verdict}", verdict, f"{value:+.4f}"] in [
            row[:3] for row in drawn.rows
        ]
    assert "margin of 0.01" in drawn.caption
    assert "all 4 intervals cover the truth together" in drawn.caption
    looks = figures.VERDICTS.values()
    assert len({look.colour for look in looks}) == len({look.marker for look in looks}) == 4
    assert "\u2190 worse" in drawn.svg
    assert "better \u2192" in drawn.svg


def test_the_shade_of_the_forest_is_as_wide_as_the_margin():
    """On the axis, the shaded box is as wide as twice the margin beside an interval of known width."""
    compared = comparisons.comparison(four_rows(), comparisons=4, margin=0.01)
    svg = figures.forest(compared).svg
    shade = re.search(r'<path d="([^"]+)"[^>]*opacity: 0\.18', svg).group(1)
    across = [float(x) for x in re.findall(r"[ML] ([\d.]+)", shade)]
    lines = re.findall(r'<path d="([^"]+)"[^>]*stroke: #009e73; stroke-width: 2', svg)
    better = [float(x) for x in re.findall(r"[ML] ([\d.]+)", lines[0])]
    scale = (better[1] - better[0]) / (0.048 - 0.012)
    assert (max(across) - min(across)) / scale == pytest.approx(0.02, rel=1e-3)


def test_where_lower_is_better_the_sides_of_the_forest_change():
    rows = {"baseline": comparisons.row()}
    delta = documents.Difference(value=-0.02, low=-0.03, high=-0.01)
    rows["focal"] = comparisons.row(verdict="better", delta={"locked.brier": delta})
    compared = comparisons.comparison(
        {made.BACKBONE: rows}, comparisons=1, primary="locked.brier", winners={"vgg16": "focal"}
    )
    assert "\u2190 better" in figures.forest(compared).svg
    claim = card.claim(compared, made.BACKBONE, "focal")
    assert "high end" in claim
    assert "-0.0100 in Brier score" in claim


def test_a_difference_without_interval_is_drawn_as_a_point():
    rows = {"baseline": comparisons.row()}
    delta = documents.Difference(value=0.02, low=None, high=None)
    rows["focal"] = comparisons.rival("inconclusive", delta, reason="One patient decides.")
    drawn = figures.forest(comparisons.comparison({made.BACKBONE: rows}, comparisons=1))
    assert "+0.0200, no interval" in drawn.svg
    assert "nan" not in drawn.svg.lower()


def test_the_table_has_verdicts_first_and_says_what_was_switched_off_and_missed(folder, browser):
    names = ["baseline", *(["oversample", "undersample", "class_weight", "augment"])]
    made_up = study(folder, run={"scenarios": names})
    for name in names:
        made.result(made_up, name)
    comparison, results = compared(made_up)
    rows = dict(comparison.rows[made.BACKBONE])
    primary = comparison.primary
    for name, (verdict, (value, low, high)) in zip(names[1:], FOUR.items()):
        detectable = 0.004 if verdict == "worse" else 0.0176
        delta = documents.Difference(
            value=value, low=low, high=high, detectable=detectable, patients_to_settle=1234.5
        )
        beside = documents.Difference(value=0.111, low=-0.222, high=0.333)
        changed = {
            "verdict": verdict,
            "reason": f"It is {verdict}.",
            "delta": {primary: delta, "locked.sensitivity": beside},
            "switched_off": verdict == "equivalent",
        }
        rows[name] = rows[name].model_copy(update=changed)
    measured = rows["augment"].locked["sensitivity"]
    missing = measured.model_copy(update={"value": 0.7654, "low": 0.7, "high": 0.8})
    rows["augment"] = rows["augment"].model_copy(
        update={"locked": {**rows["augment"].locked, "sensitivity": missing}}
    )
    changed = {
        "rows": {made.BACKBONE: rows},
        "winners": {made.BACKBONE: "oversample"},
        "headline": "What comes first.",
    }
    comparison = comparison.model_copy(update=changed)
    path = report.write(made_up, comparison, results)
    browser.open(path)
    assert browser.run("document.querySelector('.verdict').textContent") == "What comes first."
    table = "document.querySelector('#scenarios-1 table.cards')"
    heads = browser.run(f"[...{table}.querySelectorAll('thead th')].map(one => one.innerText)")
    assert heads[:2] == ["scenario", "verdict"]
    assert heads[3].split("\n") == ["detectable", "patients to settle"]
    rows_shown = f"[...{table}.querySelectorAll('tbody tr')]"
    cells = browser.run(f"{rows_shown}.map(row => [...row.cells].map(one => one.innerText))")
    names_shown = browser.run(f"{rows_shown}.map(row => row.cells[0].firstChild.data)")
    by_name = dict(zip(names_shown, cells))
    assert by_name["baseline"][1:4] == ["baseline", "\u2013", "\u2013"]
    assert by_name["oversample"][0].split() == ["oversample", "winner"]
    assert by_name["oversample"][1].split() == ["\u25b2", "better"]
    assert by_name["undersample"][1].split() == ["\u25bc", "worse"]
    assert by_name["class_weight"][1].split() == ["\u2248", "equivalent"]
    assert by_name["augment"][1].split() == ["?", "inconclusive"]
    assert by_name["augment"][3].split("\n") == ["0.018", "about 1,300"]
    assert by_name["undersample"][3].split("\n") == ["0.004", "enough"]
    notes = "[...document.querySelectorAll('#scenarios-1 .footnotes li')].map(one => one.innerText)"
    said = {note.split(" ", 1)[0]: note for note in browser.run(notes)}
    mark = "row => [...row.querySelectorAll('sup')].map(one => one.innerText)"
    marks = dict(zip(names_shown, browser.run(f"{rows_shown}.map({mark})")))
    assert any("switched off by the search" in said[letter] for letter in marks["class_weight"])
    assert not any("switched off" in said[letter] for letter in marks["augment"])
    missed = "augment reaches 0.765 [0.700, 0.800] of images"
    assert any(missed in said[letter] for letter in marks["augment"])
    targets = (
        "[...document.querySelectorAll('sup a')].every(one => document.querySelector(one.hash))"
    )
    assert browser.run(targets)
    colours = browser.run(
        f"[...{table}.querySelectorAll('.badge')].map(one => getComputedStyle(one).color)"
    )
    assert len(set(colours)) == 5
    text = browser.run("document.body.textContent")
    assert "by at least" not in text
    assert "its claim is the low end of the simultaneous 95 % interval: +0.0120 in AUROC" in text
    beside = browser.run(
        "document.querySelector('[aria-label=\"Other differences of vgg16\"]').textContent"
    )
    assert "+0.111" in beside
    assert not any(verdict in beside for verdict in FOUR)
    order = [
        html_place(path, mark)
        for mark in ("What comes first", "<svg", '<table class="cards"', "It is better")
    ]
    assert order == sorted(order)


def html_place(path, mark):
    """Where a mark first stands on the page."""
    return path.read_text(encoding="utf-8").index(mark)


def test_the_page_has_the_figures_and_loads_nothing(real):
    *_, html = real
    read = Reader(html)
    # For a page and for a phone: differences, decision, classes. A panel for each of two scenarios: reliability,
    # search. Both in one: ROC, precision-recall.
    assert read.tags.count("svg") == 12
    described = re.findall(
        r'<svg role="img" aria-labelledby="([^"]+)" aria-describedby="([^"]+)"', html
    )
    assert len(described) == 12
    names = re.findall(r'\bid="([^"]+)"', html)
    assert {name for pair in described for name in pair} <= set(names)
    assert len(names) == len(set(names)), "an id stands once"
    assert all(value.startswith(("#", "data:image/")) for value in read.loads), read.loads
    assert not {"link", "iframe", "object", "embed", "base"} & set(read.tags)
    assert read.tags.count("script") == 2
    assert not read.handlers
    assert "@import" not in html
    assert not re.search(r"url\(\s*['\"]?(?!#)", html)
    before_the_cards, _, _ = html.partition('<section aria-labelledby="card">')
    assert before_the_cards.count("<table") == before_the_cards.count("<caption>")
    assert len(html.encode()) < 4_000_000


def test_curves_are_those_of_scikit_learn(folder):
    made_up = study(folder, run={"scenarios": ["baseline"]}, train={"seeds": [0]})
    made.result(made_up, "baseline", 1.0)
    result = results_.read_results(made_up)[0]
    bands = curves.bands(result, 1)
    test = result.predictions.part("test")
    truth, prob = test.table["label"], test.probabilities("prob")[:, 1]
    alarms, sensitivity, _ = roc_curve(truth, prob, drop_intermediate=False)
    np.testing.assert_allclose(
        bands.roc.estimate[1:], np.interp(curves.GRID, alarms, sensitivity), atol=1e-12
    )
    assert bands.roc.estimate[1:].mean() == pytest.approx(roc_auc_score(truth, prob), abs=0.01)
    assert bands.precision_recall.estimate.mean() == pytest.approx(
        average_precision_score(truth, prob), abs=0.01
    )
    for band in bands:
        assert (band.low <= band.estimate + 1e-9).mean() > 0.95
        assert (band.high >= band.estimate - 1e-9).mean() > 0.95
    thresholds, model, treat_all = curves.net_benefit(curves.counts(result.predictions, 1))
    calibrated = test.probabilities("calibrated")[:, 1]
    for place in (9, 29, 69):
        (_, false), (_, true) = confusion_matrix(truth, calibrated >= thresholds[place])
        odds = thresholds[place] / (1 - thresholds[place])
        assert model[place] == pytest.approx((true - false * odds) / len(truth))
        assert treat_all[place] == pytest.approx(truth.mean() - (1 - truth.mean()) * odds)
    bins = curves.reliability(result, "calibrated", 1)
    assert bins.images.sum() == len(truth)
    assert (bins.observed * bins.images).sum() == pytest.approx(truth.sum())


def test_where_a_curve_rises_on_the_spot_its_upper_end_is_read():
    x = np.append(0, curves.GRID)  # a ROC curve stands at 0 twice
    band = curves.Band(x, estimate=np.linspace(0, 1, 102), low=np.arange(102) / 200, high=x)
    assert ranking.sensitivity_at(band, 0.0) == 1 / 200
    assert ranking.sensitivity_at(band, 0.02) == 3 / 200
    assert ranking.sensitivity_at(band, 1.0) == 101 / 200


def test_the_curves_lie_beside_the_page_for_dvc(real):
    comparison, _, path, _ = real
    for kind, points in (("roc", 102), ("precision_recall", 101), ("calibration", 10)):
        table = pd.read_csv(path.parent / f"plots/{kind}.csv")
        assert list(table.columns) == ["backbone", "scenario", "x", "y"]
        assert table.groupby(["backbone", "scenario"]).size().to_dict() == {
            (made.BACKBONE, name): points for name in comparison.rows[made.BACKBONE]
        }
        assert table[["x", "y"]].stack().between(0, 1).all()


def test_in_a_browser_the_page_is_silent_and_asks_for_nothing(real, browser):
    *_, path, _ = real
    browser.open(path)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if not url.startswith("data:image/")] == [
        path.resolve().as_uri()
    ]
    assert browser.run("document.getElementById('said').textContent") != ""


def test_the_policy_of_the_page_stops_what_slips_in(real, browser, tmp_path):
    """Also shows that the test above can fail: without the policy the same page makes the request."""
    *_, html = real
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    slipped = f'<img src="http://127.0.0.1:{server.server_port}/x"><script>document.title = "taken"</script></main>'
    guarded, open_page = tmp_path / "guarded.html", tmp_path / "open.html"
    guarded.write_text(html.replace("</main>", slipped), encoding="utf-8")
    without = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace(
        "</main>", slipped
    )
    open_page.write_text(without, encoding="utf-8")
    browser.open(guarded)
    assert asked == []
    assert len(browser.complaints()) == 2
    assert browser.run("document.title") == "Equipoise: made"
    browser.open(open_page)
    server.shutdown()
    assert asked == ["/x"]
    assert browser.run("document.title") == "taken"


def test_at_the_locked_threshold_the_slider_says_what_metrics_json_says(real, browser):
    comparison, results, path, _ = real
    browser.open(path)
    names = ("sensitivity", "specificity", "precision", "negative_predictive_value")
    for index, result in enumerate(results):
        summary = documents.ScenarioSummary.read(
            path.parents[2] / "results/made" / made.BACKBONE / result.scenario / "metrics.json"
        )
        pooled = comparison.rows[made.BACKBONE][result.scenario].patient["mean"]
        choose = f"which => {{ which.value = {index}; which.dispatchEvent(new Event('change')); }}"
        browser.run(f"({choose})(document.getElementById('which'))")
        for point in ("raw", "locked"):
            browser.run(f"document.querySelector('[data-point={point}]').click()")
            shown = browser.numbers()
            for name in names:
                assert shown[f"images-{name}"] == pytest.approx(
                    summary.metrics[point][name].value, abs=1e-12
                )
            for name in ("sensitivity", "specificity"):
                assert shown[f"patients-{name}"] == pytest.approx(
                    pooled.point(point)[name].value, abs=1e-12
                )
            found, false_alarms = shown["patients-found"], shown["patients-false_alarms"]
            assert shown["patients-precision"] == pytest.approx(
                found / (found + false_alarms), abs=1e-3
            )
            outcomes = ("found", "missed", "false_alarms", "cleared")
            assert sum(shown[f"images-{name}"] for name in outcomes) == pytest.approx(
                comparison.test_images
            )
            assert sum(shown[f"patients-{name}"] for name in outcomes) == pytest.approx(
                comparison.test_patients
            )
            assert sum(shown[f"thousand-patients-{name}"] for name in outcomes) == pytest.approx(
                1000
            )


def test_the_slider_moves_by_keyboard_and_counts_as_scikit_learn_does(real, browser):
    _, results, path, _ = real
    browser.open(path)
    before, said = browser.numbers(), browser.run("document.getElementById('said').textContent")
    browser.run("document.getElementById('threshold').focus()")
    browser.press("Home")
    everyone = browser.numbers()
    assert everyone["images-sensitivity"] == 1
    assert everyone["images-specificity"] == 0
    for _ in range(3):
        browser.press("ArrowRight")
    assert browser.run("document.getElementById('threshold').value") == "3"
    for step in (3, 250, 500, 777):
        moved = f"slider => {{ slider.value = {step}; slider.dispatchEvent(new Event('input')); }}"
        browser.run(f"({moved})(document.getElementById('threshold'))")
        shown, counted = browser.numbers(), []
        test = results[0].predictions.part("test")
        for rows in test.table.groupby(["repeat", "seed"]).indices.values():
            decided = test.probabilities("calibrated")[rows, 1] >= step / 1000
            counted.append(confusion_matrix(test.table["label"].to_numpy()[rows], decided).ravel())
        names = ("cleared", "false_alarms", "missed", "found")
        assert [shown[f"images-{name}"] for name in names] == pytest.approx(
            np.mean(counted, axis=0).tolist()
        )
    assert shown != before
    assert browser.run("document.getElementById('said').textContent") != said
    assert "0.777" in browser.run(
        "document.getElementById('threshold').getAttribute('aria-valuetext')"
    )


def test_the_page_can_be_read_by_phone_keyboard_and_screen_reader(real, browser):
    *_, path, _ = real
    browser.open(path, width=360)
    assert browser.run("document.documentElement.scrollWidth") <= 360
    levels = browser.run(
        "[...document.querySelectorAll('h1, h2, h3, h4, h5, h6')].map(one => +one.tagName[1])"
    )
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert max(np.diff(levels)) == 1
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    for role in ("slider", "combobox", "button", "image", "navigation", "table"):
        mine = [name for kind, name in named if kind == role]
        assert mine, role
        assert all(mine), (role, mine)
    assert {"main", "banner", "contentinfo"} <= {role for role, _ in named}
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    colours = "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
    light = browser.run(colours)
    browser.call("Emulation.setEmulatedMedia", features=dark)
    assert browser.run(colours) != light
    stroke = "getComputedStyle(document.querySelector('figure svg')).fill"
    assert browser.run(stroke) == browser.run(colours)[0]
    browser.call("Emulation.setEmulatedMedia", features=[])
    assert base64.b64decode(browser.call("Page.printToPDF")["data"]).startswith(b"%PDF")


WIDTHS = (360, 820, 1120)

#: Boxes that stick out of the window and do not lie in something that scrolls, and cut text.
STICKING_OUT = """(() => {
  const scrolls = one => ["auto", "scroll", "hidden"].includes(getComputedStyle(one).overflowX);
  const inside = one => { while ((one = one.parentElement)) if (scrolls(one)) return true; return false; };
  const wide = document.documentElement.clientWidth, out = [];
  for (const one of document.querySelectorAll("body *:not(svg *)")) {
    const box = one.getBoundingClientRect();
    if (box.width && !inside(one) && !one.matches(".skip") && (box.left < -0.5 || box.right > wide + 0.5))
      out.push(`${one.tagName} ${one.className} ${Math.round(box.left)} to ${Math.round(box.right)}`);
  }
  return out;
})()"""


@pytest.fixture(scope="module")
def two_backbones(tmp_path_factory):
    """The page of two backbones with three scenarios each."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        made_up = study(
            folder,
            run={
                "scenarios": ["baseline", "oversample", "weighted_augment"],
                "backbones": ["vgg16", "densenet201"],
            },
        )
        for name in made_up.scenarios:
            made.result(made_up, name, backbone="densenet201")
        page(made_up)
        return folder / made_up.reports_path / "report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_sticks_out_at_any_width(two_backbones, browser, width, scheme):
    scheme_of_reader = {"name": "prefers-color-scheme", "value": scheme}
    browser.call("Emulation.setEmulatedMedia", features=[scheme_of_reader])
    browser.open(two_backbones, width=width)
    browser.run("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert browser.run("document.scrollingElement.scrollWidth") <= width
    assert browser.run(STICKING_OUT) == []
    inside = "[...document.querySelectorAll('table.cards')].filter(one => one.closest('.scroll'))"
    assert browser.run(f"{inside}.length") == 0
    # Letters in figures are as large as those of a page.
    letters = "[...document.querySelectorAll('figure svg text')].map(one => one.getBoundingClientRect().height)"
    assert min(height for height in browser.run(letters) if height) >= 9
    wide = (
        "Object.assign(document.createElement('div'), { textContent: 'x', style: 'width: 3000px' })"
    )
    browser.run(f"document.body.append({wide})")
    assert browser.run(STICKING_OUT) != [], "what sticks out is seen"
    browser.call("Emulation.setEmulatedMedia", features=[])


def shown(browser, what):
    """Texts of elements that have a box."""
    boxed = "filter(one => one.getClientRects().length && one.getClientRects()[0].width > 1)"
    return browser.run(
        f"[...document.querySelectorAll('{what}')].{boxed}.map(one => one.innerText)"
    )


def test_backbones_are_tabs_for_mouse_and_keyboard_and_all_of_them_in_print(two_backbones, browser):
    browser.open(two_backbones)
    chosen = "document.querySelector('[role=tab][aria-selected=true]').textContent"
    tables = ".by-backbone > .panel > table:first-of-type"
    assert browser.run(chosen) == "vgg16"
    assert len(shown(browser, tables)) == 1
    browser.run("document.querySelector('#tab-ranking-2').click()")
    assert browser.run(chosen) == "densenet201"
    assert (
        browser.run("document.querySelector('#tab-scenarios-2').getAttribute('aria-selected')")
        == "true"
    )
    browser.run("document.querySelector('#tab-scenarios-2').focus()")
    browser.press("ArrowRight")
    assert browser.run("document.activeElement.id") == "tab-scenarios-1"
    assert browser.run(chosen) == "vgg16"
    browser.press("End")
    assert browser.run("document.activeElement.id") == "tab-scenarios-2"
    in_reach = (
        "[...document.querySelectorAll('#scenarios ~ * [role=tab]')].map(one => one.tabIndex)"
    )
    assert browser.run(in_reach) == [-1, 0]
    panel_of = "one => document.getElementById(one.getAttribute('aria-controls'))"
    controlled = f"[...document.querySelectorAll('[role=tab]')].every({panel_of})"
    assert browser.run(controlled)
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert len(shown(browser, tables)) == 2
    assert shown(browser, "#scenarios-1 > h3, #scenarios-2 > h3") == ["vgg16", "densenet201"]
    assert shown(browser, "[role=tab]") == []
    browser.call("Emulation.setEmulatedMedia", media="")


def test_no_figure_of_a_backbone_is_so_high_in_print_that_a_page_before_it_stays_empty(
    two_backbones, browser
):
    """What does not part goes to the next page, and leaves up to its own height of this one."""
    browser.open(two_backbones)
    browser.call("Emulation.setEmulatedMedia", media="print")
    px_per_mm = 96 / 25.4
    browser.call(
        "Emulation.setDeviceMetricsOverride",
        width=round(184 * px_per_mm),  # A4 within its margins
        height=1000,
        deviceScaleFactor=1,
        mobile=False,
    )
    heights = browser.run(
        "[...document.querySelectorAll('.panel svg')].map(one => one.getBoundingClientRect().height)"
    )
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", media="")
    shown_mm = [height / px_per_mm for height in heights if height]
    assert len(shown_mm) > 10
    assert max(shown_mm) < 297 / 4


def test_without_the_script_backbones_stand_below_each_other(two_backbones, browser):
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open(two_backbones)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    headings = [node["name"]["value"] for node in nodes if node["role"]["value"] == "heading"]
    assert headings.count("vgg16") == headings.count("densenet201") >= 4
    assert not any(node["role"]["value"] == "tab" for node in nodes)


def test_one_scenario_of_the_curves_is_in_colour_by_choice(two_backbones, browser):
    browser.open(two_backbones)
    script = """[...document.querySelectorAll("#ranking-1 .full")].filter(
        one => getComputedStyle(one).visibility === "visible").map(one => +one.dataset.curve)"""
    assert set(browser.run(script)) == {1}
    choose = "document.querySelector('#ranking-1 [value=\"2\"]').click()"
    browser.run(choose)
    assert set(browser.run(script)) == {2}
    everyone = "new Set([...document.querySelectorAll('#ranking-1 .thin')].map(one => one.dataset.curve)).size"
    assert browser.run(everyone) == 3
    grey = (
        "getComputedStyle(document.querySelector('#ranking-1 .thin[data-curve=\"0\"] path')).stroke"
    )
    assert browser.run(grey) == "rgb(140, 140, 140)"


def test_choosing_a_scenario_moves_the_slider_to_its_locked_threshold(real, browser):
    _, results, path, _ = real
    browser.open(path)
    for index, result in enumerate(results):
        moved = "slider => { slider.value = 999; slider.dispatchEvent(new Event('input')); }"
        browser.run(f"({moved})(document.getElementById('threshold'))")
        choose = f"which => {{ which.value = {index}; which.dispatchEvent(new Event('change')); }}"
        browser.run(f"({choose})(document.getElementById('which'))")
        people = patients.by_patient(
            result.predictions,
            "mean",
            config.Threshold(**result.summary.settings["threshold"]),
            result.summary.settings["tune"]["sensitivity_floor"],
        )
        locked = people.part("test").table.groupby(["repeat", "fold", "seed"])["threshold"].first()
        step = float(browser.run("document.getElementById('threshold').value"))
        assert step / 1000 == pytest.approx(locked.mean(), abs=6e-4)
        pressed = "document.querySelector('[data-point=locked]').getAttribute('aria-pressed')"
        assert browser.run(pressed) == "true"


def test_the_card_is_rendered_and_what_looks_like_markup_in_it_is_text(real):
    *_, html = real
    _, _, cards = html.partition('<section aria-labelledby="card">')
    assert "<h5>Model details</h5>" in cards
    assert "## " not in cards
    assert "<th>threshold-free</th>" in cards
    rendered = template.environment(comparisons.comparison()).filters["rendered"]
    hostile = "* [a](javascript:1) ![b](http://x/y) <http://x/y> <b>c</b>\n* [d]: http://x/y\n\n[d]\n\n<script>e</script>"
    tags = Reader(rendered(hostile)).tags
    assert set(tags) == {"ul", "li", "p"}


def test_on_top_stand_dataset_patients_and_digests_of_code_and_settings(real, tmp_path):
    comparison, results, _, html = real
    text = " ".join(" ".join(Reader(html).text).split())
    assert "Dataset " in text
    assert f"Patients {comparison.test_patients} tested: " in text
    said = report.code_of(results)
    assert re.fullmatch(r"[0-9a-f]{12}, [0-9a-f]{12}", said)
    assert f"Code and settings {said}" in text

    def with_other_code_in(*modules):
        package = shutil.copytree(
            environment.PACKAGE, tmp_path / "".join(modules).replace("/", ".")
        )
        for module in modules:
            with (package / module).open("a") as written:
                written.write("# other code\n")
        return report.code_of(results, package)

    assert with_other_code_in("service/predictor.py", "cli/parser.py", "core/shown.py") == said
    code, settings = said.split(", ")
    code_now, settings_now = with_other_code_in("scenario/heads/head.py").split(", ")
    assert code_now != code
    assert settings_now == settings


def test_git_finds_the_commit_of_the_numbers_by_what_the_page_says(real, tmp_path):
    _, _, path, html = real
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "--quiet"], check=True)
    numbers = hashlib.md5((path.parent / "evidence.json").read_bytes()).hexdigest()
    for name, md5 in (("before", "0" * 32), ("these", numbers), ("after", "f" * 32)):
        (tmp_path / "dvc.lock").write_text(f"    - path: evidence.json\n      md5: {md5}\n")
        subprocess.run([*git, "add", "-A"], check=True)
        subprocess.run([*git, "commit", "--quiet", "--message", name], check=True)
    (command,) = re.findall(r"<pre>(git log .*)</pre>", html)
    words = shlex.split(unescape(command))
    listed = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r"\d{4}-\d\d-\d\d [0-9a-f]{7,} these", listed.splitlines()[-1])


def test_a_note_below_a_table_stands_once_with_one_letter():
    notes = template.Footnotes("n")
    marks = [notes.mark(text) for text in ("one", "<two>", "one")]
    assert [re.search(r">(\w)<", mark).group(1) for mark in marks] == ["a", "b", "a"]
    assert notes.listed() == [("a", "one"), ("b", "<two>")]
    for number in range(30):
        notes.mark(str(number))
    assert len({letter for letter, _ in notes.listed()}) == 32


def test_hostile_names_are_text(folder, browser):
    made_up = study(folder, classes=("clear", IMAGE), positive=IMAGE)
    for name in made_up.scenarios:
        made.result(made_up, name)
        path = made_up.result_path(made.BACKBONE, name) / "metrics.json"
        summary = files.read_json(path)
        changed = {"settings": {**summary["settings"], "embed": f"</pre>{HOSTILE}"}}
        files.write_json(
            path, {**summary, **changed, "checks": [{**summary["checks"][0], "detail": HOSTILE}]}
        )
    path = made_up.manifest_path.with_suffix(".json")
    files.write_json(path, {**files.read_json(path), "source": HOSTILE, "citation": IMAGE})
    written = report.write(made_up, *compared(made_up))
    html = written.read_text(encoding="utf-8")
    read = Reader(html)
    assert HOSTILE not in html
    assert IMAGE not in html
    assert "img" not in read.tags
    assert read.tags.count("script") == 2
    assert not read.handlers
    # The source and the detail of a check, each on the page and in the card.
    assert " ".join(read.text).count(HOSTILE) == 4
    assert f"Positive class: {IMAGE}" in " ".join(read.text)
    browser.open(written)
    assert browser.complaints() == []
    assert browser.run("document.getElementById('of-class').textContent") == IMAGE
    assert browser.run("document.querySelectorAll('img').length") == 0


def test_pictures_of_mistakes_are_data_and_leave_room(folder):
    def mistake(image_id, picture, overlay=""):
        return Mistake("vgg16", "baseline", image_id, "clear", "opacity", 0.9, picture, overlay, "")

    foreign = mistake("x", "http://example.org/x", "javascript:1")
    megabyte = "data:image/png;base64," + "A" * 10**6
    shown = report.that_fit([foreign, *(mistake(str(place), megabyte) for place in range(9))])
    assert shown[0] == mistake("x", "")
    assert [entry.image_id for entry in shown] == ["x", "0", "1"]
    assert shown[1].picture == megabyte


@pytest.mark.parametrize("name", ["a $\\bad$ name", "_below"])
def test_a_class_name_is_never_markup_of_the_drawing_library(name):
    rows = [
        {"stage": "train", "class_name": other, "images": 3, "patients": 2}
        for other in ("clear", name)
    ]
    rows = [{**row, "image_share": 0.5, "imbalance_ratio": None} for row in rows]
    assert name in figures.distribution(rows, ["clear", name], "vgg16").svg


def test_several_classes_and_backbones_have_a_page(folder, browser):
    made_up = study(
        folder,
        run={"scenarios": ["baseline", "augment"], "backbones": ["vgg16", "densenet201"]},
        patients=(40, 30, 20),
        classes=("a", "b", "c"),
        tune={"objective": "auroc"},
        compare={"primary": "auroc"},
    )
    for name in made_up.scenarios:
        made.result(made_up, name, backbone="densenet201")
    comparison, html = page(made_up)
    assert "% sensitivity" not in html
    assert "at 0.5<" not in html
    first, *rest = wording.verdict(comparison)
    assert f'<p class="verdict">{first}</p>' in html
    before_the_cards, _, _ = html.partition('<section aria-labelledby="card">')
    for sentence in rest:
        backbone, _, said = sentence.partition(": ")
        assert backbone in comparison.rows
        assert before_the_cards.count(said) == 1
    # The differences, wide and narrow; of each backbone the classes likewise, two curves, reliability of two scenarios.
    assert Reader(html).tags.count("svg") == 2 + 2 * (2 + 2 + 2)
    assert "A decision curve needs two classes" in html
    browser.open(made_up.reports_path / "report.html")
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('#which option').length") == 12
    result = results_.load_result(
        made_up, "vgg16", "baseline", made_up.result_path("vgg16", "baseline")
    )
    test = evidence.first_run(result.predictions)
    decided = test.probabilities("calibrated").argmax(axis=1)
    found = pd.Series(decided == 0)[test.table["label"] == 0].mean()
    assert browser.numbers()["images-sensitivity"] == pytest.approx(found)


def test_results_without_shared_patients_are_shown_beside_those_with_them(folder):
    made_up = made.study(
        folder, run={"scenarios": ["baseline"]}, split={"scheme": "official"}, official_overlap=3
    )
    summary = scenario.run(made_up, made.BACKBONE, "baseline")
    comparison, results = compared(made_up)
    html = report.write(made_up, comparison, results).read_text(encoding="utf-8")
    images = summary.non_overlapping.rows.test
    assert f"baseline, without shared patients and pictures ({images} images)" in html
    assert "EQ-OFFICIAL" in html
    assert "Only the baseline was run" in html


def test_a_page_can_be_made_when_nothing_was_searched(folder):
    made_up = made.study(
        folder, patients=(20, 3), run={"scenarios": ["baseline"]}, train={"seeds": [0]}
    )
    scenario.run(made_up, made.BACKBONE, "baseline")
    _, results = compare.run(made_up)
    short = documents.Comparison.read(made_up.reports_path / "comparison.json")
    html = report.write(made_up, short, results).read_text(encoding="utf-8")
    assert "Calibration is the identity" in html
    assert "inner folds fell from 3 to as few as 1" in html
    assert "nothing was searched" in html
