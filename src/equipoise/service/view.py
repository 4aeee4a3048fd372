"""What the page of MLflow opens with: runs sorted by their difference to the baseline, the verdict beside it."""

from __future__ import annotations

import json
from typing import Any

from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_RUN_NOTE

from equipoise.core.config import Study
from equipoise.service import runs

#: Name of the view of ours among those that people share.
_NAME = "equipoise"
#: MLflow keeps a shared view in a tag of the experiment.
_TAG = f"mlflow.sharedViewState.{_NAME}"
_COLUMNS = (
    f"tags.`{runs.VERDICT}`",
    f"tags.`{runs.WINNER}`",
    "metrics.`primary/difference`",
    "metrics.`primary/low`",
    "metrics.`primary/high`",
    "metrics.`test/auroc`",
    "metrics.`locked/sensitivity`",
    "metrics.`locked/specificity`",
)


def describe(store: MlflowClient, experiment: str, study: Study) -> None:
    """Give an experiment its description and the view that links open, where it has others or none."""
    note = f"Scenarios of the study '{study.name}': {study.reports_path.name}/report.html holds the comparison."
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
    }


def address(server: str, experiment: str) -> str:
    """Link to the runs of an experiment.

    Without `workflowType` MLflow opens what language models are traced with.
    """
    query = f"workflowType=machine_learning&viewStateShareKey={_NAME}"
    return f"{server.rstrip('/')}/#/experiments/{experiment}/runs?{query}"
