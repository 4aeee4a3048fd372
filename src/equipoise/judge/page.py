"""The page of `judge`: verdicts, differences, tables and curves of methods, whoever made them."""

from __future__ import annotations

from pathlib import Path

from equipoise.compare.report import figures, ranking
from equipoise.compare.report.template import columns, environment, is_binary, secondary
from equipoise.core.documents import Comparison
from equipoise.core.files import atomic_path, json_text
from equipoise.core.version import VERSION
from equipoise.judge.verdicts import JudgedMethods


def write(path: Path, judged: JudgedMethods) -> None:
    """Write the page, one file that asks for nothing else.

    Args:
        path: Of the page.
        judged: What `verdicts.judge_files` gave.
    """
    # As files hold it: a number that does not exist is null there.
    comparison = Comparison.model_validate_json(json_text(judged.comparison.as_dict()))
    baseline = comparison.baseline
    page = (
        environment(comparison, "equipoise.judge")
        .get_template("judged.html")
        .render(
            comparison=comparison,
            facts=_facts(comparison),
            rows=comparison.rows[""],
            binary=is_binary(comparison),
            columns=columns(comparison),
            columns_beside=secondary(comparison),
            forest=figures.forest(comparison),
            ranking=ranking.overlay(judged.tested, baseline=baseline),
            seed=judged.settings.compare.seed,
            version=VERSION,
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _facts(comparison: Comparison) -> dict[str, str]:
    """What was tested, each with its name."""
    facts = {
        "Methods": f"{len(comparison.rows[''])}",
        "Patients": f"{comparison.test_patients:,}" if comparison.units == "patients" else "no ids",
        "Images": f"{comparison.test_images:,}",
    }
    if comparison.folds > 1:
        facts["Folds"] = f"{comparison.folds}"
    if is_binary(comparison):
        facts["Positive class"] = comparison.positive_class
    facts["Majority"] = comparison.majority_class
    return facts
