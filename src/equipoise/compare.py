"""Paired differences against the baseline, corrected for multiplicity; the verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests

from equipoise import checks, controls, metrics, parallel, strategies
from equipoise.backbones import load_row
from equipoise.config import Study
from equipoise.errors import ConfigError, DataError
from equipoise.inputs import Inputs
from equipoise.records import Manifest, Predictions, Splits, digest_of, imbalance_ratio, read_json, write_json

BASELINE = "baseline"
#: Differences shown beside the primary one.
_SECONDARY = (
    *("free.auroc", "free.average_precision"),
    *("raw.sensitivity", "raw.specificity", "raw.balanced_accuracy", "raw.brier"),
    *("locked.sensitivity", "locked.specificity", "locked.balanced_accuracy", "locked.brier"),
)


#: Findings that a reader of the table must know, whatever else is said about them.
_WARNINGS = {
    "EQ005": "too few patients to stratify",
    "EQ006": "one picture under two classes",
    "EQ007": "the files' metadata tell the classes apart, and a network may use the same shortcut",
    "EQ008": "labels permuted between patients are learned, so test is not independent of train",
}


@dataclass(frozen=True)
class Result:
    """One scenario on one backbone, as read back from its files."""

    backbone: str
    scenario: str
    summary: dict[str, Any]
    choices: list[dict[str, Any]]
    predictions: Predictions
    evaluation: metrics.Evaluation


def run(study: Study) -> tuple[dict[str, Any], list[Result]]:
    """Compare the configured scenarios of a study and write comparison.json.

    Raises:
        ConfigError: Without the baseline, or for an unknown metric.
        DataError: When a result is missing, or was tested on other rows than the rest.
    """
    results = read_results(study)
    comparison = compare(study, results, control(study, results))
    write_json(study.reports_path / "comparison.json", comparison)
    # What is printed and drawn is what was written: where a metric does not exist the file says null.
    return read_json(study.reports_path / "comparison.json"), results


def control(study: Study, results: list[Result]) -> dict[str, Any]:
    """The controls of `controls.py`: files' metadata alone, and permuted labels on each backbone's features."""
    baselines = {result.backbone: result for result in results if result.scenario == BASELINE}
    manifest, splits = Manifest.read(study.manifest_path), Splits.read(study.splits_path)
    settings = study.settings
    metadata = controls.metadata_only(manifest, splits, settings.compare, settings.tune.sensitivity_floor)
    sides = [controls.sides(manifest, splits.round(repeat, fold)) for repeat, fold in splits.rounds() if repeat == 0]
    permuted = {}
    for backbone, result in parallel.progress(baselines.items(), "permuting labels", len(baselines), "backbones"):
        inputs, l2 = Inputs.read(study, backbone, BASELINE), result.choices[0]["settings"]["l2"]
        permuted[backbone] = controls.permuted_labels(
            inputs, sides, l2, settings.compare.permutations, settings.compare.seed
        )
    return {"metadata_only": metadata, "permuted_labels": permuted}


def read_results(study: Study) -> list[Result]:
    """Results of the configured backbones and scenarios, whatever else lies in the folder."""
    if BASELINE not in study.scenarios:
        raise ConfigError("run.scenarios lacks the baseline, and every difference is taken to it. Add `baseline`.")
    results = []
    pairs = [(backbone, scenario) for backbone in study.backbones for scenario in study.scenarios]
    for backbone, scenario in parallel.progress(pairs, "resampling patients", len(pairs), "results"):
        load_row(backbone)
        strategies.load_strategy(scenario)
        folder = study.result_path(backbone, scenario)
        if not (folder / "predictions.parquet").is_file():
            raise DataError(
                f"{folder} holds no predictions. Run `equipoise scenario --study {study.name} "
                f"--backbone {backbone} --scenario {scenario}`, or take it off run.scenarios in params.yaml."
            )
        results.append(load_result(study, backbone, scenario, folder))
    _alike(results)
    return results


def load_result(study: Study, backbone: str, scenario: str, folder: Path) -> Result:
    """Read one result back and evaluate it with the study's resamples."""
    predictions = Predictions.read(folder / "predictions.parquet")
    evaluation = metrics.evaluate(predictions, study.settings.compare, study.settings.tune.sensitivity_floor)
    summary, choices = read_json(folder / "metrics.json"), read_json(folder / "best.json")
    return Result(backbone, scenario, summary, choices, predictions, evaluation)


def _alike(results: list[Result]) -> None:
    first = results[0]
    for other in results[1:]:
        for what, mine, its in (
            ("classes", first.predictions.classes, other.predictions.classes),
            ("positive class", first.summary["positive_class"], other.summary["positive_class"]),
            ("test rows (digest)", first.predictions.test_digest()[:12], other.predictions.test_digest()[:12]),
        ):
            if mine != its:
                raise DataError(
                    f"{first.backbone}/{first.scenario} and {other.backbone}/{other.scenario} differ in their {what}: "
                    f"{mine} and {its}. Only results on the same test rows can be compared; run `dvc repro`."
                )


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
    baselines = {result.backbone: result for result in results if result.scenario == BASELINE}
    rivals = [result for result in results if result.scenario != BASELINE]
    better = 1 if metric.better == "higher" else -1
    deltas = {id(result): _delta(result, baselines[result.backbone], primary, settings.alpha) for result in rivals}
    if rivals:
        raw = [deltas[id(result)]["p_value"] for result in rivals]
        for result, adjusted in zip(rivals, multipletests(raw, alpha=settings.alpha, method="holm")[1]):
            deltas[id(result)]["p_holm"] = float(adjusted)
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        row: dict[str, Any] = {
            "inner_score": result.summary["inner_score"],
            "result_digest": result.summary["result_digest"],
            "seed_has_effect": result.summary["seed_has_effect"],
            **result.evaluation.table(),
        }
        if result.scenario == BASELINE:
            row["verdict"] = BASELINE
        else:
            delta = deltas[id(result)]
            clear = delta["p_holm"] < settings.alpha
            row["verdict"] = (
                "no clear difference" if not clear else "better" if better * delta["value"] > 0 else "worse"
            )
            row["delta"] = {
                primary: delta,
                **{
                    name: _delta(result, baselines[result.backbone], name, settings.alpha)
                    for name in _SECONDARY
                    if name != primary and name in result.evaluation.draws
                },
            }
        if result.summary["non_overlapping"]:
            row["non_overlapping"] = result.summary["non_overlapping"]
        rows.setdefault(result.backbone, {})[result.scenario] = row
    sign = 1 if metrics.load_metric(study.settings.tune.objective).better == "higher" else -1
    winners = {backbone: _winner(own, sign) for backbone, own in rows.items()}
    challenger = max(winners, key=lambda backbone: _inner(rows[backbone][winners[backbone]], sign))
    splits = read_json(study.splits_path.with_suffix(".json"))
    # The results' own answers: beside those of the split they know the plans.
    found = first.summary["checks"] + [
        check.as_dict() for check in controls.checks_of(controlled["metadata_only"], controlled["permuted_labels"])
    ]
    test = first.predictions.part("test").table
    comparison = {
        "study": study.name,
        "classes": list(first.predictions.classes),
        "positive_class": first.summary["positive_class"],
        "majority_class": first.summary["majority_class"],
        "minority_classes": first.summary["minority_classes"],
        "weights": {result.backbone: result.summary["weights"] for result in results},
        "mode": first.summary["mode"],
        "test": first.summary["test"],
        "test_images": int(test["image_id"].nunique()),
        "test_patients": int(test["patient_id"].nunique()),
        "test_digest": first.predictions.test_digest(),
        "primary": primary,
        "sensitivity_floor": study.settings.tune.sensitivity_floor,
        "alpha": settings.alpha,
        "resamples": settings.resamples,
        "units": "patients" if read_json(study.manifest_path.with_suffix(".json"))["patient_ids"] else "images",
        "controls": controlled,
        "checks": found,
        "scheme": splits["scheme"],
        "group_by": splits["group_by"],
        "rows": rows,
        "winners": winners,
        "challenger": challenger,
    }
    comparison["registrable"] = not checks.finding(found, "EQ-OFFICIAL")
    comparison["verdict"] = verdict_text(comparison)
    comparison["notes"] = _notes(comparison, results)
    comparison["digest"] = digest_of({name: value for name, value in comparison.items() if name != "digest"})
    return comparison


def _delta(result: Result, baseline: Result, name: str, alpha: float) -> dict[str, Any]:
    """Paired difference to the baseline: estimate, percentile interval, two-sided bootstrap p."""
    draws = result.evaluation.draws[name] - baseline.evaluation.draws[name]
    resampled = draws[1:][~np.isnan(draws[1:])]
    if not len(resampled):
        raise DataError(
            f"{name} of {result.backbone}/{result.scenario} exists in no resample; the test part is too small."
        )
    low, high = np.quantile(resampled, [alpha / 2, 1 - alpha / 2])
    # The estimate counts as one resample, so that p is never 0.
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum()) + 1
    p_value = min(1.0, 2 * tail / (len(resampled) + 1))
    return {"value": float(draws[0]), "low": float(low), "high": float(high), "p_value": float(p_value)}


def _winner(rows: dict[str, Any], sign: int) -> str:
    """The baseline, unless scenarios are better: then the best inner score among those."""
    better = [scenario for scenario, row in rows.items() if row["verdict"] == "better"]
    return max(better, key=lambda scenario: _inner(rows[scenario], sign)) if better else BASELINE


def _inner(row: dict[str, Any], sign: int) -> float:
    """The inner score, higher is better; without a search there is none, and it loses to any."""
    return -np.inf if row["inner_score"] is None else sign * row["inner_score"]


def metric_label(name: str, floor: float) -> str:
    """Words for `point.metric`.

    >>> metric_label("free.specificity_at_sensitivity", 0.95)
    'specificity at 95 % sensitivity'
    """
    point, metric = name.split(".")
    if metric == "specificity_at_sensitivity":
        return f"specificity at {100 * floor:g} % sensitivity"
    words = {"auroc": "AUROC", "f1": "F1", "brier": "Brier score"}.get(metric, metric.replace("_", " "))
    return words + {"free": "", "raw": " at 0.5", "locked": " at the locked threshold"}[point]


def verdict_text(comparison: dict[str, Any]) -> str:
    """One sentence per backbone: which remedy is better than doing nothing, by how much, how surely."""
    label = metric_label(comparison["primary"], comparison["sensitivity_floor"])
    level = f"{100 * (1 - comparison['alpha']):g} %"
    sentences = []
    for backbone, rows in comparison["rows"].items():
        winner = comparison["winners"][backbone]
        rivals = [row for row in rows.values() if "delta" in row]
        if winner != BASELINE:
            delta = rows[winner]["delta"][comparison["primary"]]
            sentences.append(
                f"{backbone}: {winner} is better than the baseline in {label} by {delta['value']:+.3f} "
                f"({level} interval {delta['low']:+.3f} to {delta['high']:+.3f}, Holm p = {delta['p_holm']:.3f})."
            )
            continue
        worse = [scenario for scenario, row in rows.items() if row["verdict"] == "worse"]
        text = f"{backbone}: no remedy is clearly better than the baseline in {label}"
        if rivals:
            ends = [row["delta"][comparison["primary"]] for row in rivals]
            lowest, highest = min(d["low"] for d in ends), max(d["high"] for d in ends)
            text += f" (intervals of the differences lie within {lowest:+.3f} to {highest:+.3f})"
        sentences.append(text + (f"; {', '.join(worse)} is worse." if worse else "."))
    return " ".join(sentences)


def _notes(comparison: dict[str, Any], results: list[Result]) -> list[str]:
    """What a reader must know before believing the table."""
    units, classes = comparison["units"], comparison["classes"]
    roles = f"Positive class: {comparison['positive_class']}. " if len(classes) == 2 else ""
    notes = [
        f"{roles}Majority: {comparison['majority_class']}. "
        f"Minority: {', '.join(comparison['minority_classes']) or 'none, the classes are equal'}.",
        f"Intervals resample the {comparison[f'test_{units}']} test {units} "
        f"{comparison['resamples']} times; test decided the choice of the winner, so its own number is optimistic.",
    ]
    if units == "images":
        notes.append(
            "These data carry no patient ids: intervals are per image, too narrow where images share a patient."
        )
    if len(classes) == 2 and comparison["positive_class"] == comparison["majority_class"]:
        notes.append("The positive class is the majority: re-balancing favours the negatives and lowers sensitivity.")
    for code, text in _WARNINGS.items():
        notes += [
            f"{code}: {text}: {check['detail']}."
            for check in comparison["checks"]
            if check["code"] == code and check["answer"] == "finding"
        ]
    if (weights := comparison["weights"]) and "random" in weights.values():
        drawn = ", ".join(name for name, kind in weights.items() if kind == "random")
        notes.append(
            f"The weights of {drawn} are random, not ImageNet's: the numbers show the procedure, not its best."
        )
    still = sorted({result.scenario for result in results if result.summary["seed_has_effect"] is False})
    if still:
        notes.append(f"The seed has no effect on {', '.join(still)}: equal numbers over seeds are not zero spread.")
    plain: dict[str, list[str]] = {}
    for result in results:
        for reason in sorted({choice["calibrator"]["reason"] for choice in result.choices} - {""}):
            plain.setdefault(reason, []).append(f"{result.scenario} ({result.backbone})")
    for reason, names in plain.items():
        which = "every scenario" if len(names) == len(results) else ", ".join(names)
        notes.append(f"Calibration is the identity for {which}: {reason}.")
    vague = sorted(
        {
            f"{result.scenario} ({result.backbone})"
            for result in results
            if result.scenario != BASELINE and not any(choice.get("identified") for choice in result.choices)
        }
    )
    if vague:
        notes.append(
            f"The parameter is not identified by these data, so published settings are kept: {', '.join(vague)}."
        )
    folds = {choice["inner_folds"] for result in results for choice in result.choices}
    wanted = results[0].summary["settings"]["tune"]["inner_folds"]
    if min(folds) < wanted:
        notes.append(f"A class has few train patients: inner folds fell from {wanted} to as few as {min(folds)}.")
    if not comparison["registrable"]:
        notes.append(
            f"EQ-OFFICIAL: {_detail(comparison, 'EQ-OFFICIAL')}. Results are also given on the other rows, and nothing "
            f"can be registered from this split."
        )
    return notes


def _detail(comparison: dict[str, Any], code: str) -> str:
    return next(check["detail"] for check in comparison["checks"] if check["code"] == code)


def table_text(comparison: dict[str, Any]) -> str:
    """The comparison as lines of text, one row per scenario."""
    primary, binary = comparison["primary"], len(comparison["classes"]) == 2
    label = metric_label(primary, comparison["sensitivity_floor"])
    columns = ["free.auroc", *([primary] if primary != "free.auroc" else [])]
    columns += (
        ["raw.sensitivity", "raw.specificity", "locked.sensitivity", "locked.specificity"]
        if binary
        else [
            "raw.accuracy",
            "raw.balanced_accuracy",
        ]
    )
    short = {"raw.sensitivity": "sens @0.5", "raw.specificity": "spec @0.5", "locked.sensitivity": "sens locked"}
    short |= {
        "locked.specificity": "spec locked",
        primary: label.replace("specificity", "spec").replace("sensitivity", "sens"),
    }
    heads = [
        "scenario",
        *(short.get(name, metric_label(name, 0)) for name in columns),
        "difference to baseline",
        "verdict",
    ]
    per = "; intervals are per image: there are no patient ids" if comparison["units"] == "images" else ""
    lines = []
    for backbone, rows in comparison["rows"].items():
        body = []
        for scenario, row in rows.items():
            cells = [scenario]
            for name in columns:
                point, metric = name.split(".")
                value = row[point][metric]
                cells.append(f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]")
            delta = row.get("delta", {}).get(primary)
            cells.append(
                f"{delta['value']:+.3f} [{delta['low']:+.3f}, {delta['high']:+.3f}] p={delta['p_holm']:.3f}"
                if delta
                else "-"
            )
            body.append([*cells, row["verdict"] + (" *" if comparison["winners"][backbone] == scenario else "")])
        widths = [max(len(row[index]) for row in [heads, *body]) for index in range(len(heads))]
        lines.append(f"{comparison['study']}, {backbone} (* the winner; difference in {label}, p after Holm{per})")
        lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in [heads, *body]]
        lines.append("")
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None or np.isnan(value) else f"{value:.3f}"


def distribution(results: list[Result]) -> list[dict[str, Any]]:
    """Images and patients per class before the split, in each part, and in each scenario's plan (first round)."""
    stages = {name: table for name, table in results[0].summary["distribution"].items() if name != "plan"}
    stages |= {f"plan: {result.scenario}": result.summary["distribution"]["plan"] for result in results}
    return [
        {
            "stage": stage,
            "class_name": name,
            **values,
            "imbalance_ratio": imbalance_ratio(np.array([row["images"] for row in classes.values()])),
        }
        for stage, classes in stages.items()
        for name, values in classes.items()
    ]
