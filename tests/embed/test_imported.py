"""Vectors from files: every format gives the same predictions, a folder of bags a verdict, and faults are named."""

import json
import pickle
import sys
import types

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import safetensors.numpy

from equipoise import costs, pipeline
from equipoise.compare import stage as compare
from equipoise.core import config, documents
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest, minority_labels
from equipoise.embed import formats, imported
from equipoise.embed import stage as features
from equipoise.embed.store import FeatureStore
from equipoise.scenario import stage as scenarios
from equipoise.use import export
from fabricate import made

NAME = made.BACKBONE
VIEWS = made.SMALL["embed"]["views"]


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "features").mkdir()
    return made.study(tmp_path)


def naming(study: config.Study, place: str, **embed) -> config.Study:
    """The study, with vectors from a file or folder."""
    section = study.settings.embed.model_copy(update={"features": {NAME: place}} | embed)
    settings = study.settings.model_copy(update={"embed": section})
    return study.model_copy(update={"settings": settings})


def stored_rows(study: config.Study) -> pd.DataFrame:
    """Image id and view of every vector that the study came with, and its row in the matrix."""
    store = FeatureStore.open(study.features_path(NAME))
    table = Manifest.read(study.manifest_path).table
    image_of = dict(zip(table["sha256"], table["image_id"]))
    rows = [(image_of[sha256], view, row) for (sha256, view), row in store.row_of.items()]
    return pd.DataFrame(rows, columns=["image_id", "view", "row"])


def write(place, names, views, matrix) -> None:
    """Write vectors in the format that the name of a file asks for."""
    texts = np.array(names, dtype=str)
    if place.suffix == ".npz":
        np.savez(place, features=matrix, ids=texts, view=views)
    elif place.suffix == ".npy":
        np.save(place, matrix)
        listed = pd.DataFrame({"image": names, "view": views, "label": 1})
        listed.to_csv(place.with_suffix(".csv"), index=False)
    elif place.suffix == ".parquet":
        table = pd.DataFrame(matrix, columns=[f"f{number}" for number in range(matrix.shape[1])])
        table = table[sorted(table.columns, reverse=True)]
        table.assign(image_id=names, view=views, age=61.0).to_parquet(place)
    elif place.suffix == ".h5":
        with h5py.File(place, "w") as file:
            file["features"] = matrix
            file["image_ids"] = [name.encode() for name in names]
            file["views"] = views
    elif place.suffix == ".safetensors":
        tensors = {"features": matrix, "views": np.asarray(views)}
        metadata = {"ids": json.dumps(list(names))}
        safetensors.numpy.save_file(tensors, place, metadata=metadata)


def predictions_of(study: config.Study, scenario: str) -> bytes:
    scenarios.run(study, NAME, scenario)
    return (study.result_path(NAME, scenario) / "predictions.parquet").read_bytes()


def test_every_format_gives_the_bytes_of_the_features_it_was_written_from(study):
    listed = stored_rows(study).sample(frac=1, random_state=1)
    matrix = np.array(FeatureStore.open(study.features_path(NAME)).matrix)[listed["row"]]
    expected = {name: predictions_of(study, name) for name in ("baseline", "augment")}
    before = (study.features_path(NAME) / "features.npy").read_bytes()
    spellings = {
        ".npz": lambda image: image,
        ".npy": lambda image: image.removesuffix(".png"),
        ".parquet": lambda image: image.split("/")[-1],
        ".h5": lambda image: image.split("/")[-1].replace(".png", ".svs"),
        ".safetensors": lambda image: f"scans/{image}".replace("/", "\\"),
    }
    for suffix, spelling in spellings.items():
        place = study.root / f"features/given{suffix}"
        names = [spelling(image) for image in listed["image_id"]]
        write(place, names, listed["view"].to_numpy(), matrix)
        given = naming(study, f"features/given{suffix}")
        done = features.run(given, NAME)
        assert done.summary.weights == "imported", suffix
        assert done.summary.views == VIEWS
        assert (study.features_path(NAME) / "features.npy").read_bytes() == before, suffix
    assert predictions_of(given, "baseline") == expected["baseline"]
    assert predictions_of(given, "augment") == expected["augment"]


def write_bags(study: config.Study, folder, layout: str = "clam") -> dict[str, np.ndarray]:
    """A file of tiles for each slide, as CLAM (tiles x d) and TRIDENT (1 x tiles x d, half) write them."""
    rng = np.random.default_rng(11)
    table = Manifest.read(study.manifest_path).table
    folder.mkdir(parents=True)
    bags = {}
    for row in table.itertuples():
        tiles = rng.normal(scale=0.5, size=(rng.integers(3, 40), 6)).astype(np.float32)
        tiles[:, 0] += row.label
        bags[row.image_id] = tiles
        name = row.image_id.split("/")[-1].removesuffix(".png")
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file["features"] = tiles if layout == "clam" else tiles[None].astype(np.float16)
            file["coords"] = rng.integers(0, 9999, (len(tiles), 2))
    return bags


def test_a_folder_of_bags_runs_to_a_verdict_per_slide(study):
    bags = write_bags(study, study.root / "features/bags")
    given = naming(study, "features/bags", pool="mean")
    done = features.run(given, NAME)
    assert done.passes_now == 0
    assert done.summary.views == 0
    store = FeatureStore.open(given.features_path(NAME))
    table = Manifest.read(given.manifest_path).table
    for row in table.itertuples():
        stored = store.matrix[store.row_of[row.sha256, 0]]
        np.testing.assert_allclose(stored, bags[row.image_id].mean(axis=0), rtol=1e-5, atol=1e-6)
    for scenario in given.scenarios:
        scenarios.run(given, NAME, scenario)
    comparison = compare.run(given).comparison
    rows = comparison.rows[NAME]
    assert set(rows) == {"baseline", "oversample"}
    assert rows["oversample"].verdict in ("better", "worse", "equivalent", "inconclusive")
    assert rows["baseline"].point("free")["auroc"].value > 0.8
    assert comparison.weights == {NAME: "imported"}
    with pytest.raises(ConfigError, match=r"'augment' needs augmented views; .* column `view`"):
        scenarios.run(given, NAME, "augment")
    tuned = given.settings.train.model_copy(update={"mode": "finetune"})
    settings = given.settings.model_copy(update={"train": tuned})
    with pytest.raises(ConfigError, match="no network to fine-tune"):
        scenarios.run(given.model_copy(update={"settings": settings}), NAME, "baseline")
    with pytest.raises(ConfigError, match="no network to fine-tune"):
        pipeline.check_names(given.model_copy(update={"settings": settings}))


def test_the_highest_of_half_precision_bags(study):
    bags = write_bags(study, study.root / "features/bags", layout="trident")
    given = naming(study, "features/bags", pool="max")
    features.run(given, NAME)
    store = FeatureStore.open(given.features_path(NAME))
    row = Manifest.read(given.manifest_path).table.iloc[4]
    highest = bags[row["image_id"]].astype(np.float16).max(axis=0).astype(np.float32)
    assert np.array_equal(store.matrix[store.row_of[row["sha256"], 0]], highest)


def test_one_file_with_an_array_for_each_image(study):
    table = Manifest.read(study.manifest_path).table
    rng = np.random.default_rng(2)
    vectors = {image: rng.normal(size=5).astype(np.float32) for image in table["image_id"]}
    with h5py.File(study.root / "features/each.h5", "w") as file:
        for image, vector in vectors.items():
            file[f"{image}/features"] = vector
            file[f"{image}/coords"] = [[0, 0]]
    safetensors.numpy.save_file(vectors, study.root / "features/each.safetensors")
    np.savez(study.root / "features/each.npz", **vectors)
    digests = set()
    for suffix in (".h5", ".safetensors", ".npz"):
        done = features.run(naming(study, f"features/each{suffix}"), NAME)
        digests.add(done.summary.digest)
    assert len(digests) == 1


def test_imported_views_are_no_pictures_that_could_be_exported(study):
    listed = stored_rows(study)
    matrix = np.array(FeatureStore.open(study.features_path(NAME)).matrix)
    place = study.root / "features/given.npz"
    write(place, listed["image_id"].tolist(), listed["view"].to_numpy(), matrix)
    given = naming(study, "features/given.npz")
    features.run(given, NAME)
    scenarios.run(given, NAME, "augment")
    with pytest.raises(
        DataError, match="whose vectors were imported, so there is no picture of them"
    ):
        export.export_study(given, "folders", "augment", NAME)
    assert export.export_study(given, "csv", "augment", NAME).files == 1


# --- faults ---------------------------------------------------------------------------------------


def refused(study: config.Study, names, matrix, views=None, **embed) -> str:
    place = study.root / "features/faulty.npz"
    views = np.zeros(len(names), dtype=int) if views is None else views
    write(place, names, views, np.asarray(matrix, dtype=np.float32))
    with pytest.raises(DataError) as error:
        features.run(naming(study, "features/faulty.npz", **embed), NAME)
    return str(error.value)


@pytest.fixture
def plain(study):
    """Names and vectors of all images, as they are right."""
    names = Manifest.read(study.manifest_path).table["image_id"].tolist()
    matrix = np.random.default_rng(4).normal(size=(len(names), 4)).astype(np.float32)
    return names, matrix


def test_faults_are_counted_and_named(study, plain):
    names, matrix = plain
    total = len(names)
    matrix[2, 1] = np.nan
    matrix[5] = 3.0
    said = refused(study, [*names[3:], names[7]], [*matrix[3:], matrix[7]])
    assert f"3 of {total} images have no vector ({', '.join(names[:3])})" in said
    assert "1 image has several vectors; embed.pool: mean or max" in said
    assert f"({names[7]})" in said
    assert f"1 vector is one number throughout ({names[5]})" in said
    assert f"1 vector holds numbers that are not finite ({names[2]})" in refused(
        study, names, matrix
    )


def test_images_that_the_study_lacks_are_said_and_left_out(study, plain):
    names, matrix = plain
    write(
        study.root / "features/more.npz",
        [*names, "elsewhere.png"],
        np.zeros(len(names) + 1, dtype=int),
        np.concatenate([matrix, matrix[:1]]),
    )
    done = features.run(naming(study, "features/more.npz"), NAME)
    assert "1 name is of no image of the study (elsewhere.png)" in features.result_text(done)


def test_two_names_of_one_image_and_names_of_two(study, plain):
    names, matrix = plain
    bare = names[0].removesuffix(".png")
    upper = bare.upper()
    said = refused(study, [bare, upper, *names[1:]], [matrix[0], *matrix])
    assert "2 names mean an image that another means too" in said


def test_unlike_lengths(study, plain):
    names, matrix = plain
    vectors = dict(zip(names, matrix))
    vectors[names[1]] = vectors[names[1]][:3]
    np.savez(study.root / "features/unlike.npz", **vectors)
    with pytest.raises(DataError, match=rf"1 vector has another length than 4 \({names[1]}: 3\)"):
        features.run(naming(study, "features/unlike.npz"), NAME)


def test_every_vector_the_same(study, plain):
    names, matrix = plain
    said = refused(study, names, np.repeat(matrix[:1], len(names), axis=0))
    assert f"all {len(names)} vectors are the same" in said


def test_views_of_some_images_only(study, plain):
    names, matrix = plain
    manifest = Manifest.read(study.manifest_path)
    rare = manifest.table["label"].isin(minority_labels(manifest.counts()))
    viewed = manifest.table.loc[rare, "image_id"].tolist()
    views = [0] * len(names) + [1] * (len(viewed) - 1)
    rng = np.random.default_rng(9)
    more = rng.normal(size=(len(viewed) - 1, 4))
    said = refused(study, names + viewed[1:], np.concatenate([matrix, more]), np.array(views))
    assert f"1 view is missing ({viewed[0]}, view 1)" in said


def test_what_would_be_executed_is_refused(study, plain):
    names, matrix = plain
    place = study.root / "features/objects.npz"
    np.savez(place, features=matrix, ids=np.array(names, dtype=object))
    with pytest.raises(DataError, match=r"cannot be read as \.npz: Object arrays cannot be loaded"):
        features.run(naming(study, "features/objects.npz"), NAME)


def elsewhere(file):
    file.create_dataset("features", (2, 50), "f4", external=[("/etc/passwd", 0, 400)])


def of_others(file):
    layout = h5py.VirtualLayout((2, 50), "f4")
    layout[0] = h5py.VirtualSource("other.h5", "x", (50,))
    file.create_virtual_dataset("features", layout)


def unwritten(file):
    file.create_dataset("features", (2**20, 2**15), "f4", chunks=(64, 64))


@pytest.mark.parametrize(
    ("fill", "sentence"),
    [
        (elsewhere, "'features' lies in other files, which are not opened"),
        (of_others, "'features' lies in other files, which are not opened"),
        (unwritten, "claims 137,438,953,472 bytes, and the file holds 0 of them"),
    ],
)
def test_hdf5_that_reaches_out_or_claims_more_than_it_holds_is_refused(study, fill, sentence):
    with h5py.File(study.root / "features/reaching.h5", "w") as file:
        fill(file)
        file["image_ids"] = [b"a", b"b"]
    with pytest.raises(DataError, match=sentence):
        features.run(naming(study, "features/reaching.h5"), NAME)


def test_texts_that_hdf5_would_read_for_ever_are_refused(study, plain, monkeypatch):
    names, matrix = plain
    write(study.root / "features/slow.h5", names, [0] * len(names), matrix)
    features.run(naming(study, "features/slow.h5"), NAME)
    monkeypatch.setattr(formats, "_TEXTS_SECONDS", 0.01)
    with pytest.raises(DataError, match=r"'image_ids' cannot be read within 0.01 s: it is damaged"):
        features.run(naming(study, "features/slow.h5"), NAME)


def test_packed_zeros_are_refused_and_features_that_are_mostly_zero_are_not(study, plain):
    names, matrix = plain
    place = study.root / "features/bomb.npz"
    np.savez_compressed(place, features=np.zeros((2**15, 2**10 + 1), np.float32))
    with pytest.raises(DataError, match=r"'features.npy' claims .* could be a decompression bomb"):
        features.run(naming(study, "features/bomb.npz"), NAME)
    table = pa.table({"image_id": pa.nulls(2**22, pa.string()), "f0": np.zeros(2**22)})
    columns = {f"f{number}": table["f0"] for number in range(1, 9)}
    for name, column in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, study.root / "features/bomb.parquet")
    with pytest.raises(DataError, match=r"the table' claims .* could be a decompression bomb"):
        features.run(naming(study, "features/bomb.parquet"), NAME)
    sparse = np.zeros((len(names), 5_000), np.float32)
    sparse[:, :4] = matrix
    np.savez_compressed(place, features=sparse, ids=np.array(names, dtype=str))
    features.run(naming(study, "features/bomb.npz"), NAME)


def test_torch_files_without_torch_and_of_evil(study, tmp_path):
    place = study.root / "features/bag.pt"
    place.write_bytes(pickle.dumps(print))
    expected = "needs the package torch, which is not installed"
    try:
        import torch  # noqa: F401

        expected = "cannot be read as .pt"
    except ModuleNotFoundError:
        pass
    with pytest.raises(DataError, match=expected):
        features.run(naming(study, "features/bag.pt"), NAME)


def test_a_torch_that_runs_what_a_file_holds_is_refused(study, monkeypatch):
    old = types.ModuleType("torch")
    old.__version__ = "2.5.1+cpu"
    monkeypatch.setitem(sys.modules, "torch", old)
    (study.root / "features/bag.pt").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"torch 2.5.1\+cpu can be made to run .* 2.6 or later"):
        features.run(naming(study, "features/bag.pt"), NAME)


def test_torch_files_where_torch_is(study, plain):
    torch = pytest.importorskip("torch")
    names, matrix = plain
    folder = study.root / "features/pt"
    for name, vector in zip(names, matrix):
        place = (folder / name).with_suffix(".pt")
        place.parent.mkdir(parents=True, exist_ok=True)
        torch.save(torch.tensor(vector)[None].repeat(3, 1), place)
    features.run(naming(study, "features/pt", pool="mean"), NAME)
    np.testing.assert_array_equal(FeatureStore.open(study.features_path(NAME)).matrix, matrix)


@pytest.mark.parametrize("suffix", sorted({*formats.SUFFIXES} - {".pt", ".pth"}))
def test_a_file_that_is_cut_off(study, suffix):
    place = study.root / f"features/cut{suffix}"
    place.write_bytes(b"\x93NUMPY\x89HDF\r\n\x1a\nPAR1 and then nothing")
    with pytest.raises(DataError, match=f"cut{suffix} cannot be read as {suffix}"):
        features.run(naming(study, f"features/cut{suffix}"), NAME)


def test_no_file_another_file_an_empty_folder(study):
    (study.root / "features/empty").mkdir()
    (study.root / "features/notes.txt").write_text("a")
    for place, said in {
        "features/none.h5": "There is no .*none.h5",
        "features/empty": "holds no file of vectors",
        "features/notes.txt": "is of no format of vectors. Expected are files ending in .npz",
    }.items():
        with pytest.raises(DataError, match=said):
            features.run(naming(study, place), NAME)


def test_labels_among_the_columns_are_no_features(study, plain):
    names, matrix = plain
    table = pd.DataFrame(matrix, columns=[f"f{number}" for number in range(4)])
    place = study.root / "features/table.parquet"
    table.assign(image=names, label=1, fold1=2).to_parquet(place)
    with pytest.raises(DataError, match="numbered columns like: 'f0', 'fold0'"):
        features.run(naming(study, "features/table.parquet"), NAME)
    lists = pd.DataFrame({"image": names, "label": 1, "embedding": list(matrix)})
    lists.to_parquet(place)
    features.run(naming(study, "features/table.parquet"), NAME)
    np.testing.assert_array_equal(FeatureStore.open(study.features_path(NAME)).matrix, matrix)


# --- names, freshness, costs ----------------------------------------------------------------------


def test_a_name_of_no_network_and_a_changed_file(study, plain):
    names, matrix = plain
    write(study.root / "features/uni.npz", names, np.zeros(len(names), dtype=int), matrix)
    contents = made.params(
        run={"backbones": ["uni"]}, embed={"features": {"uni": "features/uni.npz"}}
    )
    given = config.load_study("made", contents, root=study.root)
    pipeline.check_names(given)
    features.run(given, "uni")
    steps = {step.what: step for step in costs.steps(given)}
    assert steps["embed uni"].passes == 0
    first = imported.content_digest(given, "uni")
    assert imported.content_digest(given, "uni") == first
    summary = documents.FeatureSummary.read(given.features_path("uni") / "meta.json")
    assert summary.weights_digest == first
    write(study.root / "features/uni.npz", names, np.zeros(len(names), dtype=int), 2 * matrix)
    assert imported.content_digest(given, "uni") != first
    with pytest.raises(ConfigError, match="There is no backbone 'unx'"):
        imported.require_known(given.settings.embed, "unx")
    with pytest.raises(ConfigError, match=r"embed\.features"):
        config.load_study(
            "made", made.params(embed={"features": {"../u": "x.h5"}}), root=study.root
        )


def test_vectors_where_dvc_does_not_look(study, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    write_bags(study, elsewhere / "bags")
    file = next((elsewhere / "bags").iterdir())
    (study.root / "features/bag.h5").symlink_to(file)
    (study.root / "features/linked").symlink_to(elsewhere)
    (study.root / "a.h5").symlink_to(file)

    def advice(place: str) -> str:
        return imported.advice_to_move(naming(study, place), NAME)

    assert advice("features/bag.h5") == ""
    assert "put the vectors, or links to the files, into features/" in advice("a.h5")
    assert "put the vectors" in advice("features/../a.h5")
    assert "does not follow the link" in advice("features/linked/bags")
    assert "`cp -rs FOLDER features/linked`" in advice("features/linked")
    # They are read all the same: what DVC would miss is not half of the vectors.
    linked = naming(study, "features/linked/bags", pool="max")
    assert features.run(linked, NAME).summary.num_features == 6
