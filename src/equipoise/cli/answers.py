"""Verbs that ask a registered model: predict, explain."""

from __future__ import annotations

from pathlib import Path

from equipoise.cli.common import ArgumentParser, Group, Options, Verb, note, say
from equipoise.core.errors import ConfigError, EquipoiseError


def _predict_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="for example models:/equipoise-demo@champion"
    )
    parser.add_argument(
        "images", nargs="*", help="files, folders, patterns, or a CSV with the column path"
    )
    parser.add_argument(
        "--features", metavar="FILE", help="vectors instead of images, as embed.features names them"
    )
    parser.add_argument(
        "--out", default="predictions.csv", help=".csv or .parquet (default: predictions.csv)"
    )


def _predict(options: Options) -> None:
    from equipoise.use import predict, predict_vectors

    out = Path(options.out)
    # MLproject hands on an empty word for what was not given.
    paths = [path for path in options.images if path]
    if bool(paths) == bool(options.features):
        raise ConfigError("Name images, or vectors with --features: one of the two is expected.")
    if options.features:
        given = Path(options.features)
        done = predict_vectors.predict_features(options.model, given, out, options.root, note)
    else:
        done = predict.predict_images(options.model, paths, out, options.root, note)
    flagged = f", {done.flagged} of them marked in `flags`" if done.flagged else ""
    say(
        f"{done.predicted} images predicted{flagged}, {done.unreadable} unreadable; "
        f"written to {options.out}"
    )
    if not done.predicted:
        raise EquipoiseError("No image could be read; the column `error` of the file says why.")


def _explain_options(parser: ArgumentParser) -> None:
    parser.add_argument("image", help="an image file")
    parser.add_argument("--model", required=True, help="as for predict")
    parser.add_argument(
        "-o", "--out", default="explained.png", help="PNG to write (default: explained.png)"
    )
    parser.add_argument(
        "--class", dest="class_name", help="map of this class (default: the one decided for)"
    )


def _explain(options: Options) -> None:
    from equipoise.use import explain

    image, out = Path(options.image), Path(options.out)
    say(explain.explain_image(options.model, image, out, options.class_name, options.root))


GROUP = Group(
    "ask a registered model",
    (
        Verb(
            "predict",
            "images, folders, patterns or a CSV -> CSV or Parquet, with a registered model",
            _predict,
            _predict_options,
            example="equipoise predict --model models:/equipoise-demo@champion data/raw/demo --out new.csv",
        ),
        Verb(
            "explain",
            "an image -> the decision of a registered model, and a map of what speaks for it",
            _explain,
            _explain_options,
            example="equipoise explain film.png --model models:/equipoise-demo@champion -o why.png",
        ),
    ),
)
