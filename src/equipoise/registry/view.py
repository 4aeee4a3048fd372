"""What the page of MLflow opens with: runs sorted by their difference to the baseline, the verdict beside it."""

from __future__ import annotations

import json
from typing import Any

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from equipoise.core.config import Study
from equipoise.registry import runs

#: Name of the view of ours among those that people share.
_NAME = "equipoise"
#: MLflow keeps a shared view in a tag of the experiment.
_TAG = f"mlflow.sharedViewState.{_NAME}"
#: Columns from left to right, and their widths in pixels.
_COLUMNS = {
    f"tags.`{runs.VERDICT}`": 95,
    f"tags.`{runs.WINNER}`": 75,
    "metrics.`primary/difference`": 140,
    "metrics.`primary/low`": 100,
    "metrics.`primary/high`": 100,
    "metrics.`test/auroc`": 100,
    "metrics.`locked/sensitivity`": 140,
    "metrics.`locked/specificity`": 140,
}


def describe(store: MlflowClient, experiment: str, study: Study) -> None:
    """Give an experiment its description and the view that links open, where it has others or none."""
    page = study.reports_path.relative_to(study.root) / "report.html"
    note = f"Scenarios of the study '{study.name}'; {page.as_posix()} compares them."
    wanted = {
        MLFLOW_RUN_NOTE: note,
        "mlflow.experimentKind": "custom_model_development",
        _TAG: json.dumps(_state()),
    }
    there = store.get_experiment(experiment).tags
    for name, value in wanted.items():
        if there.get(name) != value:
            store.set_experiment_tag(experiment, name, value)


def _state() -> dict[str, Any]:
    """The view in the words of MLflow's page: columns, order and a filter."""
    return {
        "searchFilter": f"tags.`{runs.ROLE}` = 'result'",
        "orderByKey": "metrics.`primary/difference`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "ALL",
        "selectedColumns": list(_COLUMNS),
        "columnOrder": list(_COLUMNS),
        "columnWidths": _COLUMNS,
    }


def address(server: str, experiment: str) -> str:
    """Link to the runs of an experiment.

    Without `workflowType` MLflow opens what language models are traced with.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={_NAME}"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{query}"
