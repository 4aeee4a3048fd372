"""The model card (Mitchell et al. 2019, items of CLAIM 2024 and TRIPOD+AI), from files alone; its text is card.md."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jinja2 import ChainableUndefined, Environment, PackageLoader, Undefined

from equipoise.compare import evidence
from equipoise.compare.wording import metric_label
from equipoise.core.config import Study
from equipoise.core.files import read_json
from equipoise.core.records import Predictions
from equipoise.evaluation import metrics
from equipoise.ingest.datasets import base as datasets

FILE_NAME = "MODEL_CARD.md"
_EPSILON = 1e-12
_ABSENT = "not measured"
_POINTS = ("free", "raw", "locked")


def card(
    study: Study, backbone: str, scenario: str, software: Mapping[str, str] | None = None
) -> str:
    """Write the card of one result as Markdown; what its files do not hold is said to be not measured.

    Args:
        study: Whose manifest, split and comparison.
        backbone: Of the result.
        scenario: Of the result.
        software: Versions and commit: no file of a result holds them.

    Raises:
        DataError: When the manifest, the split, the metrics or the predictions are not there.
    """
    folder = study.result_path(backbone, scenario)
    ingest, splits = (
        read_json(path.with_suffix(".json")) for path in (study.manifest_path, study.splits_path)
    )
    summary, choices = read_json(folder / "metrics.json"), read_json(folder / "best.json")
    written = [
        study.reports_path / "evidence.json",
        study.reports_path / "comparison.json",
        folder / "model/model.json",
    ]
    full, short, model = (read_json(path) if path.is_file() else {} for path in written)
    compared = full or short
    row = compared.get("rows", {}).get(backbone, {}).get(scenario, {})
    if row.get("result_digest") != summary["result_digest"]:  # of another run of this scenario
        compared, row = {}, {}
    wrong, tested = wrongly_decided(Predictions.read(folder / "predictions.parquet"))
    pairs = Counter(zip(wrong["truth"], wrong["decided"]))
    source = getattr(datasets.load_dataset(study.dataset), "CARD", None)
    environment = Environment(  # noqa: S701 - Markdown, which has its own way to make text harmless
        loader=PackageLoader("equipoise.compare", "."),
        undefined=ChainableUndefined,
        finalize=_safe,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("card.md").render(
        **{
            "study": study.name,
            "backbone": backbone,
            "scenario": scenario,
            "software": dict(software or {}),
        },
        **{
            "ingest": ingest,
            "splits": splits,
            "summary": summary,
            "model": model,
            "compared": compared,
            "row": row,
        },
        choices=[choice for choice in choices if choice["seed"] == choices[0]["seed"]],
        title=source.title if source else study.dataset,
        fitted_on="the pooled out-of-fold predictions" if splits["scheme"] == "kfold" else "val",
        reading=source.readings.get(splits["group_by"], "") if source else "",
        left_out=_left_out(study),
        measured={"images": summary.get("metrics", {}), **_by_patient(row)},
        names=lambda points: dict.fromkeys(
            name for point in _POINTS for name in points.get(point, {})
        ),
        **{"wrong": len(wrong), "tested": tested},
        pairs=[
            ([summary["classes"][label] for label in pair], count)
            for pair, count in sorted(pairs.items())
        ],
        label=lambda name: metric_label(
            name, summary["settings"]["tune"]["sensitivity_floor"], len(summary["classes"]) == 2
        ),
        **{"plain": _plain, "number": _number, "cell": _cell},
    )


def wrongly_decided(predictions: Predictions) -> tuple[pd.DataFrame, int]:
    """Mistakes among the test images of the first repeat and seed, and how many images there are.

    Returns:
        image_id, truth and decided (labels), prob (calibrated, of the decided class), the most confident first: by the
        distance of the logit from the threshold's, or for more than two classes from the true class's.
    """
    test = evidence.first_run(predictions)
    table, probs, every = test.table, test.probabilities("calibrated"), np.arange(len(test.table))
    threshold, truth = table["threshold"].to_numpy(dtype=np.float64), table["label"].to_numpy()
    decided = metrics.decide(probs, test.positive_label, threshold)
    odds = np.log(np.clip(probs, _EPSILON, 1)) - np.log(np.clip(1 - probs, _EPSILON, 1))
    rival = odds[every, truth]
    if probs.shape[1] == 2:
        at = np.clip(threshold, _EPSILON, 1 - _EPSILON)
        rival = np.where(decided == test.positive_label, 1, -1) * np.log(at / (1 - at))
    found = table[["image_id"]].assign(truth=truth, decided=decided, prob=probs[every, decided])
    found = found.assign(confidence=odds[every, decided] - rival)[decided != truth]
    return found.sort_values(["confidence", "image_id"], ascending=[False, True]), len(every)


def _by_patient(row: Mapping[str, Any]) -> dict[str, Any]:
    found = row.get("patient", {}).get("mean", {})
    return (
        {f"patients, by the mean logit of their images ({found['patients']})": found}
        if "locked" in found
        else {}
    )


def _left_out(study: Study) -> dict[str, int]:
    path = study.manifest_path.with_suffix(".quarantine.csv")
    if not path.is_file():
        return {}
    # What stands before " of " or ":" names the kind; what follows may name an image, and so a patient.
    kinds = pd.read_csv(path, dtype=str)["reason"].str.split(r":| of ", regex=True).str[0]
    return kinds.value_counts().sort_index().to_dict()


def _safe(value: Any) -> str:
    """Text that stays text in Markdown, whatever a class or column is called."""
    if value is None or isinstance(value, Undefined):
        return _ABSENT
    text = html.escape(str(value).replace("\n", " "), quote=False)
    return text.replace("|", "\\|").replace("](", "] (")


def _number(value: Any) -> str | None:
    return None if value is None or isinstance(value, Undefined) else f"{value:.3f}"


def _cell(cell: Any) -> str | None:
    """Estimate and interval; empty where a metric has no such operating point."""
    if isinstance(cell, Undefined):
        return ""
    if cell is None or cell["value"] is None:
        return None
    return f"{cell['value']:.3f} [{_number(cell['low']) or _ABSENT}, {_number(cell['high']) or _ABSENT}]"


def _plain(values: Any) -> str | None:
    if isinstance(values, Undefined):
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in (None, ""))
