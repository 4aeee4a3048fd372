"""Paired differences against the baseline, corrected for multiplicity, and what stands behind them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.compare import controls, evidence, wording
from equipoise.compare.paired import difference, holm, paired
from equipoise.compare.patients import RULES, by_patient
from equipoise.compare.results import Result, read_results
from equipoise.compare.wording import BASELINE
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.errors import ConfigError
from equipoise.core.files import digest_of, read_json, read_table, write_json
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.evaluation import calibration, intervals, metrics
from equipoise.scenario.matrix import Inputs
from equipoise.split import checks

#: Differences shown beside the primary one.
_SECONDARY = (
    *("free.auroc", "free.average_precision"),
    *("raw.sensitivity", "raw.specificity", "raw.balanced_accuracy", "raw.brier"),
    *("locked.sensitivity", "locked.specificity", "locked.balanced_accuracy", "locked.brier"),
)


#: What comparison.json keeps of all the numbers, beside the primary one.
_SHORT = {
    "free": ("auroc", "average_precision"),
    **dict.fromkeys(
        ("raw", "locked"),
        ("sensitivity", "specificity", "accuracy", "f1", "balanced_accuracy", "brier"),
    ),
}


#: A vote is no probability: only what follows from its order and its decisions.
_NO_PROBABILITY = [
    f"{point}.{name}"
    for name, metric in metrics.REGISTRY.items()
    for point in (("free",) if metric.kind == "rank" else ("raw", "locked"))
    if metric.kind != "probability"
]


def run(study: Study) -> tuple[dict[str, Any], list[Result]]:
    """Compare the configured scenarios of a study; write evidence.json and comparison.json.

    Returns:
        Contents of evidence.json, of which comparison.json is the short form, and what it was made from.

    Raises:
        ConfigError: Without the baseline, or for an unknown metric.
        DataError: When a result is missing, or was tested on other rows than the rest.
    """
    results = read_results(study)
    found = compare(study, results, control(study, results))
    write_json(study.reports_path / "evidence.json", found)
    write_json(study.reports_path / "comparison.json", short_form(found))
    # What is printed and drawn is what was written: where a metric does not exist the file says null.
    return read_json(study.reports_path / "evidence.json"), results


def short_form(found: dict[str, Any]) -> dict[str, Any]:
    """What a reader and `dvc metrics diff` need: main metrics with intervals, the primary difference, the verdicts."""
    primary = found["primary"]

    def cell(values: Mapping[str, Any]) -> dict[str, float]:
        kept = ("value", "low", "high", "p_value", "p_holm")
        return {name: float(f"{values[name]:.5g}") for name in kept if name in values}

    def row(full: dict[str, Any]) -> dict[str, Any]:
        kept = {
            name: full[name]
            for name in ("inner_score", "result_digest", "seed_has_effect", "verdict")
        }
        for point, names in _SHORT.items():
            names = (*names, primary.split(".")[1]) if primary.startswith(point) else names
            kept[point] = {name: cell(full[point][name]) for name in names if name in full[point]}
        return kept | (
            {"delta": {primary: cell(full["delta"][primary])}} if "delta" in full else {}
        )

    return {
        **found,
        "checks": [
            {name: check[name] for name in ("code", "answer", "detail")}
            for check in found["checks"]
        ],
        "rows": {
            backbone: {scenario: row(full) for scenario, full in rows.items()}
            for backbone, rows in found["rows"].items()
        },
    }


def control(study: Study, results: list[Result]) -> dict[str, Any]:
    """The controls of `controls.py`: files' metadata alone, and permuted labels on each backbone's features."""
    baselines = {result.backbone: result for result in results if result.scenario == BASELINE}
    manifest, splits = Manifest.read(study.manifest_path), Splits.read(study.splits_path)
    settings = study.settings
    metadata = controls.metadata_only(
        manifest, splits, settings.compare, settings.tune.sensitivity_floor
    )
    sides = [
        controls.sides(manifest, splits.round(repeat, fold))
        for repeat, fold in splits.rounds()
        if repeat == 0
    ]
    permuted = {}
    for backbone, result in parallel.progress(
        baselines.items(), "permuting labels", len(baselines), "backbones"
    ):
        inputs, l2 = Inputs.read(study, backbone, BASELINE), result.choices[0]["settings"]["l2"]
        permuted[backbone] = controls.permuted_labels(
            inputs, sides, l2, settings.compare.permutations, settings.compare.seed
        )
    return {"metadata_only": metadata, "permuted_labels": permuted}


def compare(study: Study, results: list[Result], controlled: dict[str, Any]) -> dict[str, Any]:
    """Build the comparison from results and controls: intervals, paired differences, Holm, verdicts and winners."""
    settings = study.settings.compare
    metric = metrics.load_metric(settings.primary)
    primary = f"{'free' if metric.kind == 'rank' else 'locked'}.{settings.primary}"
    first = results[0]
    if primary not in first.evaluation.draws:
        raise ConfigError(
            f"compare.primary is {settings.primary}, which does not exist for {first.predictions.classes}."
        )
    keyed = {f"{result.backbone}/{result.scenario}": result for result in results}
    baselines = {
        key: f"{result.backbone}/{BASELINE}"
        for key, result in keyed.items()
        if result.scenario != BASELINE
    }
    evaluations = {key: result.evaluation for key, result in keyed.items()}
    deltas = paired(
        evaluations, baselines, primary, settings.alpha, 1 if metric.better == "higher" else -1
    )
    patient_ids = read_json(study.manifest_path.with_suffix(".json"))["patient_ids"]
    behind = _behind(study, keyed, baselines, "patients" if patient_ids else "images")
    rows: dict[str, dict[str, Any]] = {}
    for key, result in keyed.items():
        row = {
            name: result.summary[name]
            for name in ("inner_score", "result_digest", "seed_has_effect")
        }
        row |= {**result.evaluation.table(), "verdict": BASELINE, "reason": ""}
        if key in baselines:
            delta = deltas[key]
            row["verdict"] = delta.pop("verdict")
            row["reason"] = wording.reason(delta, row["verdict"], len(deltas), settings.alpha)
            rest = [
                name for name in _SECONDARY if name != primary and name in result.evaluation.draws
            ]
            one, other = result.evaluation, evaluations[baselines[key]]
            row["delta"] = {
                primary: delta,
                **{name: difference(one, other, name, settings.alpha) for name in rest},
            }
        if result.summary["non_overlapping"]:
            row["non_overlapping"] = result.summary["non_overlapping"]
        rows.setdefault(result.backbone, {})[result.scenario] = row | behind[key]
    sign = 1 if metrics.load_metric(study.settings.tune.objective).better == "higher" else -1
    winners = {backbone: _winner(own, sign) for backbone, own in rows.items()}
    challenger = max(winners, key=lambda backbone: _inner(rows[backbone][winners[backbone]], sign))
    splits = read_json(study.splits_path.with_suffix(".json"))
    # The results' own answers: beside those of the split they know the plans.
    found = first.summary["checks"] + [
        check.as_dict()
        for check in controls.checks_of(controlled["metadata_only"], controlled["permuted_labels"])
    ]
    test = first.predictions.part("test").table
    comparison = {
        "study": study.name,
        "classes": list(first.predictions.classes),
        **{
            name: first.summary[name]
            for name in ("positive_class", "majority_class", "minority_classes")
        },
        "weights": {result.backbone: result.summary["weights"] for result in results},
        **{name: first.summary[name] for name in ("mode", "test")},
        "test_images": int(test["image_id"].nunique()),
        "test_patients": int(test["patient_id"].nunique()),
        "test_digest": first.predictions.test_digest(),
        "primary": primary,
        "sensitivity_floor": study.settings.tune.sensitivity_floor,
        **{"alpha": settings.alpha, "resamples": settings.resamples},
        "units": "patients" if patient_ids else "images",
        "comparisons": len(deltas),
        "seeds": int(test["seed"].nunique()),
        "folds": int(test["fold"].nunique()),
        "controls": controlled,
        "checks": found,
        **{"scheme": splits["scheme"], "group_by": splits["group_by"]},
        "rows": rows,
        "winners": winners,
        "challenger": challenger,
    }
    comparison["registrable"] = not checks.finding(found, "EQ-OFFICIAL")
    comparison["verdict"] = " ".join(wording.verdict(comparison))
    choices = {f"{result.scenario} ({result.backbone})": result.choices for result in results}
    comparison["notes"] = wording.notes(
        comparison, choices, first.summary["settings"]["tune"]
    ) + calibration.guard(
        first.predictions,
        study.settings.calibrate.min_patients,
        study.settings.threshold,
        study.settings.tune.sensitivity_floor,
    )
    return comparison | {"digest": digest_of(comparison)}


def _behind(
    study: Study, results: Mapping[str, Result], baselines: Mapping[str, str], units: str
) -> dict[str, dict[str, Any]]:
    """What stands behind each row: patients, McNemar, per 1,000, prior correction, subgroups, classes, folds."""
    settings, floor = study.settings.compare, study.settings.tune.sensitivity_floor
    manifest = Manifest.read(study.manifest_path)
    labels = manifest.table.set_index("image_id")["label"]
    found: dict[str, dict[str, Any]] = {}
    means: dict[str, tuple[Predictions, intervals.Evaluation | None]] = {}
    for key, result in parallel.progress(
        results.items(), "patients and subgroups", len(results), "results"
    ):
        predictions, two = result.predictions, len(result.predictions.classes) == 2
        whole = {
            rule: by_patient(predictions, rule, study.settings.threshold, floor) for rule in RULES
        }
        levels = {rule: _of_patients(study, own, rule) for rule, own in whole.items()}
        means[key] = whole["mean"], levels["mean"]
        prior = None
        if two and result.summary["mode"] == "probe":
            plan, _ = read_table(
                study.result_path(result.backbone, result.scenario) / "plan.parquet"
            )
            positive = predictions.positive_label
            prior = evidence.prior_correction(
                result.scenario, result.choices, plan, labels, positive
            )
        found[key] = {
            "by_fold": result.evaluation.by_fold,
            "patient": {
                rule: {
                    "patients": int(own.part("test").table["patient_id"].nunique()),
                    "left_out": own.meta["left_out"],
                    **(level.table() if (level := levels[rule]) else {}),
                }
                for rule, own in whole.items()
                if units == "patients"
            },
            "prior_correction": prior,
            "subgroups": evidence.subgroups(predictions, manifest, settings, floor),
            "per_class": evidence.per_class(predictions, settings, floor),
        }
    for key, baseline in baselines.items():
        # Penalty and chance move the baseline's offset too; what is left is the remedy's.
        if (prior := found[key]["prior_correction"]) and (
            without := found[baseline]["prior_correction"]
        ):
            prior["found_beyond_baseline"] = prior["found"] - without["found"]
        (mine, level), (other, base) = means[key], means[baseline]
        found[key]["mcnemar"] = evidence.mcnemar(mine, other, units)
        if len(mine.classes) == 2:
            per = {
                "images": (
                    results[key].evaluation,
                    results[baseline].evaluation,
                    results[key].predictions,
                )
            }
            if units == "patients" and level and base:
                per = {"patients": (level, base, mine), **per}
            found[key]["per_1000"] = {
                unit: evidence.per_thousand(*given, unit) for unit, given in per.items()
            }
    for point in ("raw", "locked"):
        tests = [found[key]["mcnemar"][point] for key in baselines]
        for test, p_holm in zip(tests, holm([test["p_value"] for test in tests])):
            test["p_holm"] = p_holm
    return found


def _of_patients(study: Study, own: Predictions, rule: str) -> intervals.Evaluation | None:
    """All metrics on patients; None where those who show several classes left a class without any."""
    if own.part("test").table["label"].nunique() < len(own.classes):
        return None
    names = _NO_PROBABILITY if rule == "vote" else ()
    return intervals.evaluate(
        own, study.settings.compare, study.settings.tune.sensitivity_floor, names
    )


def _winner(rows: dict[str, Any], sign: int) -> str:
    """The baseline, unless scenarios are better: then the best inner score among those."""
    better = [scenario for scenario, row in rows.items() if row["verdict"] == "better"]
    return max(better, key=lambda scenario: _inner(rows[scenario], sign), default=BASELINE)


def _inner(row: dict[str, Any], sign: int) -> float:
    """The inner score, higher is better; without a search there is none, and it loses to any."""
    return -np.inf if row["inner_score"] is None else sign * row["inner_score"]
