"""What the light install lacks, and the words for whoever needs it: `pip install 'equipoise[keras]'`."""

from __future__ import annotations

import importlib.util

from equipoise.core.errors import MissingExtra

#: Top-level module -> the extra of pyproject.toml that brings it.
EXTRA_OF = {
    "keras": "keras",
    "tensorflow": "keras",
    "dvc": "mlops",
    "mlflow": "mlops",
    "scmrepo": "mlops",
    "sqlalchemy": "mlops",
    "pydicom": "dicom",
    "distributed": "cluster",
    "keras_hub": "hub",
    "onnx": "onnx",
    "tf2onnx": "onnx",
}
#: Extra -> what it is for.
PURPOSES = {
    "keras": "backbones: embed, finetune, explain, serving models of images",
    "mlops": "dvc repro, mlflow run, track, register, promote, predict",
    "dicom": "DICOM files",
    "cluster": "engine.backend: dask",
    "hub": "backbones of KerasHub",
    "onnx": "export --layout onnx",
}


def is_installed(module: str) -> bool:
    """Whether a module can be imported; it is not."""
    try:
        return importlib.util.find_spec(module) is not None
    except ValueError:  # somebody has forbidden its import
        return False


def modules_of(extra: str) -> list[str]:
    """Modules that an extra brings.

    >>> modules_of("onnx")
    ['onnx', 'tf2onnx']
    """
    return [module for module, its in EXTRA_OF.items() if its == extra]


def lacking(extra: str) -> list[str]:
    """Modules of an extra that are not installed."""
    return [module for module in modules_of(extra) if not is_installed(module)]


def install(extra: str) -> str:
    """The command that brings an extra.

    >>> install("dicom")
    "pip install 'equipoise[dicom]'"
    """
    return f"pip install 'equipoise[{extra}]'"


def missing(module: str | None, needed_by: str) -> MissingExtra | None:
    """The error for a module that was not there to import; None where no extra brings it.

    Args:
        module: As `ModuleNotFoundError.name` gives it.
        needed_by: A verb or a setting.

    >>> str(missing("mlflow.entities", "`equipoise register`"))
    "`equipoise register` needs mlflow, which is not installed: pip install 'equipoise[mlops]'"
    """
    top = (module or "").partition(".")[0]
    if top not in EXTRA_OF:
        return None
    return MissingExtra(
        f"{needed_by} needs {top}, which is not installed: {install(EXTRA_OF[top])}"
    )
