"""The page of `judge`: verdicts, differences, tables and curves of methods, whoever made them."""

from __future__ import annotations

from pathlib import Path

from equipoise import __version__
from equipoise.compare.judge import JudgedMethods
from equipoise.compare.report import figures
from equipoise.compare.report.template import columns, environment, is_binary, secondary
from equipoise.core.documents import Comparison
from equipoise.core.files import atomic_path, json_text


def write(path: Path, judged: JudgedMethods) -> None:
    """Write the page, one file that asks for nothing else.

    Args:
        path: Of the page.
        judged: What `judge.judge_files` gave.
    """
    # As files hold it: a number that does not exist is null there.
    comparison = Comparison.model_validate_json(json_text(judged.comparison.as_dict()))
    baseline = comparison.baseline
    page = (
        environment(comparison)
        .get_template("judged.html")
        .render(
            comparison=comparison,
            rows=comparison.rows[""],
            binary=is_binary(comparison),
            columns=columns(comparison),
            columns_beside=secondary(comparison),
            forest=figures.forest(comparison),
            ranking=[
                figures.roc(judged.tested, baseline),
                figures.precision_recall(judged.tested, baseline),
            ],
            seed=judged.settings.compare.seed,
            version=__version__,
        )
    )
    with atomic_path(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
