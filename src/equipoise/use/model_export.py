"""A served model for other programs: one ONNX file, or a SavedModel of TensorFlow.

Head, calibrator and decision become layers of the network, so that pixels or a vector go in and
probabilities and a label come out. Decoding and resizing of pictures stay outside.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from equipoise.core import extras
from equipoise.core.config import Study
from equipoise.core.documents import Calibration, Document, Part
from equipoise.core.documents import ServedModel as ModelDescription
from equipoise.core.environment import silenced
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_folder, json_text
from equipoise.core.records import probability_columns
from equipoise.core.text import first_line, in_words
from equipoise.embed import backbones, imported
from equipoise.scenario import artifact
from equipoise.scenario.finetuning import network
from equipoise.scenario.heads.head import HEAD, Head
from equipoise.service.answers import ANSWERED_CALIBRATED, ANSWERED_RAW, Answers
from equipoise.service.predictor import Predictor
from equipoise.service.vectors import COLUMN, VectorPredictor
from equipoise.use.export import NOTE

ModelLayout = Literal["onnx", "saved_model"]

#: What is written, inside the folder of an export.
FILES: dict[ModelLayout, str] = {"onnx": "model.onnx", "saved_model": "saved_model"}
#: The largest difference to what the served model answers.
TOLERANCE = 1e-4

_PIXELS = "pixels"
#: Inputs drawn to compare what was written with the served model.
_DRAWN_INPUTS = 8
_NOT_CHECKED = "not compared with the served model, because onnxruntime is not installed"


class Input(Part):
    """What goes in.

    Attributes:
        name: Of the input.
        dtype: Of its numbers.
        shape: Without the batch.
        means: What the numbers are, in words.
    """

    name: str
    dtype: str
    shape: list[int]
    means: str


class ModelExport(Document):
    """`export.json`, and the metadata of an ONNX file: what was exported, and how it is asked.

    Attributes:
        source: The version of the registry, or the result.
        outputs: Name -> what it is, in words.
        calibrator: Inside the network already; for the record.
        threshold: On the calibrated probability of the positive class, inside the network already; null where the
            most probable class decides.
        opset: Of ONNX; null for a SavedModel.
        largest_difference: Between its probabilities and those of the served model, on drawn inputs; null where
            they were not compared.
    """

    source: str
    layout: ModelLayout
    backbone: str
    input: Input
    outputs: dict[str, str]
    classes: list[str]
    positive_class: str
    calibrator: Calibration
    threshold: float | None
    pipeline: str
    evidence: str
    opset: int | None
    largest_difference: float | None

    def lines(self, place: Path) -> list[str]:
        """What a user should know of it.

        Args:
            place: What was written.
        """
        shape = ", ".join(["batch", *map(str, self.input.shape)])
        opset = "" if self.opset is None else f", opset {self.opset}"
        checked = _NOT_CHECKED
        if self.largest_difference is not None:
            checked = (
                f"largest difference to the served model on {_DRAWN_INPUTS} drawn inputs: "
                f"{self.largest_difference:.1e}"
            )
        lines = [f"{self.source} written to {place}{opset}"]
        lines.append(f"  input {self.input.name}: {self.input.dtype} ({shape}), {self.input.means}")
        lines += [f"  output {name}: {what}" for name, what in self.outputs.items()]
        return [*lines, f"  {checked}"]


def export_result(
    study: Study, backbone: str, scenario: str, layout: ModelLayout, to: Path | None = None
) -> list[str]:
    """Write the model of a result for other programs.

    Args:
        study: Name and settings.
        backbone: Of the result.
        scenario: Of the result.
        layout: `onnx` or `saved_model`.
        to: Folder to make; `exports/<study>/<layout>-<backbone>-<scenario>` below the study's root
            when left out.

    Returns:
        Lines that say what was written.

    Raises:
        DataError: When there is no such result, the folder is there already, or the network cannot
            be written like this.
        ConfigError: Without the packages that this takes.
    """
    target = to or study.root / "exports" / study.name / f"{layout}-{backbone}-{scenario}"
    _require_free(target)
    _require_packages(layout)
    result = study.result_path(backbone, scenario)
    if not (result / "model/model.json").is_file():
        raise DataError(
            f"{result} holds no model. Run `equipoise scenario` for {scenario} on {backbone} first."
        )
    with tempfile.TemporaryDirectory() as scratch:
        folder = artifact.save(study, backbone, result, Path(scratch))
        return _export(folder, f"{study.name}/{backbone}/{scenario}", layout, target)


def export_registered(
    uri: str, layout: ModelLayout, root: Path, to: Path | None = None
) -> list[str]:
    """Write a registered model for other programs.

    Args:
        uri: Its address, for example models:/equipoise-demo@champion.
        layout: `onnx` or `saved_model`.
        root: Folder that holds params.yaml.
        to: Folder to make; `exports/<model>/<layout>-version<number>` below the root when left out.

    Raises:
        ConfigError: When there is no such model, or it is none of Equipoise; without the packages
            that this takes; for a model outside the registry without `to`.
        DataError: When the folder is there already, or the network cannot be written like this.
    """
    from equipoise.registry import models
    from equipoise.use import predict

    named = predict.resolve(uri, root)
    if to is None and not named.version:
        raise ConfigError(
            f"{uri} is no version of the registry: name the folder to make with --to."
        )
    target = to or root / "exports" / named.name / f"{layout}-version{named.version}"
    _require_free(target)
    _require_packages(layout)
    folder = _parts_of(models.download(named.address, root), uri)
    return _export(folder, named.address, layout, target)


def _require_free(target: Path) -> None:
    if target.exists():
        raise DataError(
            f"{target} is there already, and an exported model never replaces anything. Remove it, or name another "
            "folder with --to."
        )


def _require_packages(layout: ModelLayout) -> None:
    needed = extras.modules_of("onnx")
    missing = extras.lacking("onnx")
    if layout == "onnx" and missing:
        raise ConfigError(
            f"--layout onnx takes {in_words(needed)}, and this machine lacks {in_words(missing)}. Run "
            f"`{extras.install('onnx')}`, or use --layout saved_model."
        )


def _parts_of(model: Path, uri: str) -> Path:
    """The folder inside a saved model that `artifact.save` wrote."""
    from mlflow.models import Model

    flavour = Model.load(str(model)).flavors.get("python_function", {})
    parts = flavour.get("artifacts", {}).get("model", {}).get("path")
    if parts is None or not (model / parts / "model.json").is_file():
        raise ConfigError(
            f"{uri} is no model that Equipoise registered, so its layers are not known. Name one that is, for "
            "example models:/equipoise-demo@champion."
        )
    return model / parts


def _export(folder: Path, source: str, layout: ModelLayout, target: Path) -> list[str]:
    """Write what lies in a model folder."""
    served = _Served.of(folder)
    with atomic_folder(target, "exporting") as place:
        file = place / FILES[layout]
        with silenced(logging.ERROR):  # what matters of Keras and tf2onnx is told at the end
            _write(served.network, file, layout)
        finished = _finish_onnx(file, served.input.name) if layout == "onnx" else None
        note = ModelExport(
            source=source,
            layout=layout,
            backbone=served.description.backbone,
            input=served.input,
            outputs=_outputs(served.description),
            classes=served.description.classes,
            positive_class=served.description.positive_class,
            calibrator=served.description.calibrator,
            threshold=served.description.threshold,
            pipeline=served.description.pipeline,
            evidence=served.description.evidence,
            opset=None if finished is None else _opset(finished),
            largest_difference=_largest_difference(served, file, layout),
        )
        if finished is not None:
            _describe_onnx(finished, file, note)
        note.write(place / NOTE)
    return note.lines(target / FILES[layout])


# --- the network ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Served:
    """A model folder, as it is served and as one network.

    Attributes:
        description: model.json.
        network: Keras model from the input to raw and calibrated probabilities and a label.
        input: What it takes.
        answers: The served model's: (batch, ...) -> raw and calibrated probabilities, each float64
            (batch, C).
        draw: Draws inputs, float32 (number, ...).
    """

    description: ModelDescription
    network: Any
    input: Input
    answers: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    draw: Callable[[int], np.ndarray]

    @classmethod
    def of(cls, folder: Path) -> _Served:
        description = ModelDescription.read(folder / "model.json")
        if description.weights == imported.WEIGHTS:
            return _served_vectors(folder, description)
        return _served_images(folder, description)


def _served_images(folder: Path, description: ModelDescription) -> _Served:
    predictor = Predictor(folder)
    size_px = description.image_size_px

    def answers(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _probabilities(predictor.answers(list(batch)), description)

    def draw(number: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (number, size_px, size_px, 3))
        brightest = np.linspace(0.1, 1.0, number)[:, None, None, None]
        return (noise * brightest).astype(np.float32)

    means = (
        f"RGB 0..255 of a picture at {size_px} x {size_px}; decoding and resizing are not in the file "
        f"({description.pipeline})"
    )
    return _Served(
        description=description,
        network=_answering(predictor.embedder.model, description),
        input=Input(name=_PIXELS, dtype="float32", shape=[size_px, size_px, 3], means=means),
        answers=answers,
        draw=draw,
    )


def _served_vectors(folder: Path, description: ModelDescription) -> _Served:
    predictor = VectorPredictor(folder)
    head = Head.load(folder / HEAD)
    length = predictor.num_features

    def answers(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return _probabilities(predictor.predict(list(batch)), description)

    def draw(number: int) -> np.ndarray:
        rng = np.random.default_rng(0)
        rows = rng.normal(size=(number, length))
        kept = head.standardiser.kept
        rows[:, kept] = rows[:, kept] * head.standardiser.scale + head.standardiser.mean
        return rows.astype(np.float32)

    return _Served(
        description=description,
        network=_answering(network.of_vectors(COLUMN, head, length), description),
        input=Input(
            name=COLUMN,
            dtype="float32",
            shape=[length],
            means=f"a vector of {description.backbone}",
        ),
        answers=answers,
        draw=draw,
    )


def _probabilities(table: Any, description: ModelDescription) -> tuple[np.ndarray, np.ndarray]:
    """Raw and calibrated probabilities of answers, each float64 (num_rows, C)."""
    raw = table[probability_columns(ANSWERED_RAW, description.classes)]
    calibrated = table[probability_columns(ANSWERED_CALIBRATED, description.classes)]
    return raw.to_numpy(), calibrated.to_numpy()


def _answering(logits: Any, description: ModelDescription) -> Any:
    """Put what `Answers` does behind a network: softmax, calibrator and decision.

    Args:
        logits: keras.Model to float64 logits (batch, C).
        description: Calibrator, threshold and positive class.

    Returns:
        keras.Model with the outputs `calibrated` and `raw`, float64 (batch, C), and `label`, int64
        (batch,).
    """
    backbones.load_keras()
    import keras
    import tensorflow as tf
    from keras import ops

    answers = Answers.of(description)
    slope = float(answers.calibrator.slope)
    biases = np.asarray(answers.calibrator.biases, dtype=np.float64)
    is_positive = np.eye(len(answers.classes))[answers.positive]

    def decided(calibrated: Any) -> Any:
        if len(answers.classes) > 2:
            return tf.argmax(calibrated, axis=1)  # that of Keras looks at bits, which ONNX cannot
        cut = 0.5 if answers.threshold is None else answers.threshold
        reached = ops.sum(calibrated * is_positive, axis=1) >= cut
        return ops.where(reached, answers.positive, 1 - answers.positive)

    # One layer: the names of single operations may stand in the network already.
    class Answering(keras.layers.Layer):
        def call(self, scores: Any) -> dict[str, Any]:
            calibrated = ops.softmax(scores * slope + biases)
            label = ops.cast(decided(calibrated), "int64")
            return {"calibrated": calibrated, "label": label, "raw": ops.softmax(scores)}

    outputs = Answering(dtype="float64", name="answers_of_equipoise")(logits.output)
    return keras.Model(logits.input, outputs, name="equipoise_answers")


def _outputs(description: ModelDescription) -> dict[str, str]:
    order = f"float64 (batch, {len(description.classes)}): {', '.join(description.classes)}"
    rule = "the largest calibrated probability"
    if description.threshold is not None:
        rule = f"{description.positive_class} where its calibrated probability is at least {description.threshold:.6g}"
    return {
        "calibrated": f"{order}, after the calibrator",
        "raw": f"{order}, as the head gives them",
        "label": f"int64 (batch), a position in that order; {rule}",
    }


# --- writing and comparing ------------------------------------------------------------------------


def _write(model: Any, file: Path, layout: ModelLayout) -> None:
    """Let Keras write a network.

    Raises:
        DataError: When it cannot be written like this.
    """
    size = [1 if length is None else length for length in model.input_shape]
    model(np.zeros(size, dtype=np.float32))  # Keras exports what was called once
    form = "onnx" if layout == "onnx" else "tf_saved_model"
    try:
        model.export(str(file), format=form, verbose=False)
    except Exception as error:  # Keras and tf2onnx raise whatever a layer makes them raise
        raise _unwritable(layout, error) from error


def _unwritable(layout: ModelLayout, error: Exception) -> DataError:
    other = "saved_model" if layout == "onnx" else "onnx"
    return DataError(
        f"Keras cannot write this network as {layout} ({type(error).__name__}: {first_line(error)}). Try --layout "
        f"{other}."
    )


def _finish_onnx(file: Path, input_name: str) -> Any:
    """Take out of an ONNX file what no node reads, name the batch, and return the onnx.ModelProto in it.

    tf2onnx leaves constants that it folded as inputs (those of `preprocess_input` of VGG and ResNet),
    and a runtime would ask for them.

    Raises:
        DataError: For an operation that ONNX does not have.
    """
    import onnx

    model = onnx.load(str(file))
    read = {name for node in model.graph.node for name in node.input}
    for item in list(model.graph.input):
        if item.name != input_name and item.name not in read:
            model.graph.input.remove(item)
    for item in (*model.graph.input, *model.graph.output):
        item.type.tensor_type.shape.dim[0].dim_param = "batch"
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:  # tf2onnx writes what it does not know as it is
        raise _unwritable("onnx", error) from error
    onnx.save(model, str(file))
    return model


def _opset(model: Any) -> int:
    """Version of the operations that an onnx.ModelProto is made of."""
    return next(item.version for item in model.opset_import if not item.domain)


def _describe_onnx(model: Any, file: Path, note: ModelExport) -> None:
    """Put the note into an ONNX file too, where it cannot get lost.

    Args:
        model: The onnx.ModelProto in the file.
        file: Written again.
        note: What is put into it.
    """
    import onnx

    texts = {}
    for name, value in note.as_dict().items():
        texts[name] = value if isinstance(value, str) else json_text(value)
    onnx.helper.set_model_props(model, texts)
    model.producer_name = "equipoise"
    onnx.save(model, str(file))


def _largest_difference(served: _Served, file: Path, layout: ModelLayout) -> float | None:
    """Between what was written and what is served, in probabilities; None where nothing here runs ONNX.

    Raises:
        DataError: When it is larger than rounding.
    """
    if layout == "onnx" and importlib.util.find_spec("onnxruntime") is None:
        return None
    inputs = served.draw(_DRAWN_INPUTS)
    run = _run_onnx if layout == "onnx" else _run_saved_model
    written = run(file, served.input.name, inputs)
    raw, calibrated = served.answers(inputs)
    difference = max(
        float(np.abs(written["raw"] - raw).max()),
        float(np.abs(written["calibrated"] - calibrated).max()),
    )
    if not difference <= TOLERANCE:  # not a number is no agreement either
        raise DataError(
            f"The exported network differs from the served one by {difference:.1e} in a probability (allowed: "
            f"{TOLERANCE:.0e}), so nothing was written. Serve the model itself, or try the other layout."
        )
    return difference


def _run_onnx(file: Path, name: str, inputs: np.ndarray) -> dict[str, np.ndarray]:
    onnxruntime = importlib.import_module("onnxruntime")
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {name: inputs})))


def _run_saved_model(file: Path, name: str, inputs: np.ndarray) -> dict[str, np.ndarray]:
    import tensorflow as tf

    loaded = tf.saved_model.load(str(file))
    return {key: value.numpy() for key, value in loaded.serve(inputs).items()}
