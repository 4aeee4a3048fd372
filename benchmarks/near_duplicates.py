"""How many planted near-duplicates are found, how many other pictures are joined, and what it costs.

python benchmarks/near_duplicates.py --films DIR [--copies 300] [--sizes 2000 20000 100000]
"""

import argparse
import hashlib
import io
import time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, map_coordinates

from equipoise.core import images
from equipoise.ingest import duplicates


def _saved(image: Image.Image, quality: int = 90) -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return images.decode(buffer.getvalue())


def _cropped(
    image: Image.Image, left: float, top: float, right: float, bottom: float
) -> Image.Image:
    width, height = image.size
    box = (left * width, top * height, (1 - right) * width, (1 - bottom) * height)
    return image.crop(tuple(round(edge) for edge in box))


def _resized(image: Image.Image, factor: float) -> Image.Image:
    return image.resize(
        (round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC
    )


def _brighter(image: Image.Image, factor: float = 1.0, levels: int = 0) -> Image.Image:
    return image.point(lambda value: max(0, min(255, value * factor + levels)))


COPIES = {
    "JPEG quality 50": lambda image: _saved(image, 50),
    "resized to 60 %": lambda image: _saved(_resized(image, 0.6)),
    "resized to 150 %": lambda image: _saved(_resized(image, 1.5)),
    "crop 3 % in total, centred": lambda image: _saved(_cropped(image, 0.015, 0.015, 0.015, 0.015)),
    "crop 3 % off the left": lambda image: _saved(_cropped(image, 0.03, 0, 0, 0)),
    "crop 3 % off the bottom": lambda image: _saved(_cropped(image, 0, 0, 0, 0.03)),
    "crop 3 % off each side": lambda image: _saved(_cropped(image, 0.03, 0.03, 0.03, 0.03)),
    "brightness x 1.1": lambda image: _saved(_brighter(image, 1.1)),
    "brightness x 0.9": lambda image: _saved(_brighter(image, 0.9)),
    "brightness + 25": lambda image: _saved(_brighter(image, levels=25)),
    "brightness - 25": lambda image: _saved(_brighter(image, levels=-25)),
    "crop each, x 1.1, 60 %, q 50": lambda image: _saved(
        _resized(_brighter(_cropped(image, 0.03, 0.03, 0.03, 0.03), 1.1), 0.6), 50
    ),
}


def _best_seconds(function, repeats: int = 9) -> float:
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def recall(files: list[Path], copies: int) -> np.ndarray:
    """Print the joined files and the share of the copies found; return the thumbnails of the files."""
    pixels = [images.decode(path) for path in files]
    thumbnails = np.stack([duplicates.thumbnail(picture) for picture in pixels])
    chosen = np.sort(
        np.random.default_rng(0).choice(len(files), min(copies, len(files)), replace=False)
    )
    content = np.unique(
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in files], return_inverse=True
    )[1]
    joined = duplicates.near_pairs(thumbnails)
    print(f"{len(files)} pictures, {len(joined)} pairs joined, of them with different bytes:")
    for one, other in joined:
        if content[one] != content[other]:
            print(f"  {files[one].name} {files[other].name}")
    print(f"{'copy':30} {'found':>7} {'other pairs':>12}")
    for kind, copy in COPIES.items():
        planted = [duplicates.thumbnail(copy(Image.fromarray(pixels[number]))) for number in chosen]
        pairs = duplicates.near_pairs(np.concatenate([thumbnails, planted]))
        right = {(int(number), len(files) + place) for place, number in enumerate(chosen)}
        found = right & set(map(tuple, pairs.tolist()))
        source = np.concatenate([content, content[chosen]])[pairs]
        print(
            f"{kind:30} {len(found) / len(right):7.1%} {(source[:, 0] != source[:, 1]).sum():12}",
            flush=True,
        )
    return thumbnails


def cost_of_thumbnails(files: list[Path]) -> None:
    """Print the time of a thumbnail beside that of decoding its file, and the same picture as PNG."""
    for path in files[:3]:
        picture = images.decode(path)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        small = _best_seconds(lambda picture=picture: duplicates.thumbnail(picture))
        for kind, data in ((path.suffix, path.read_bytes()), ("as png", buffer.getvalue())):
            whole = _best_seconds(lambda data=data: images.decode(data))
            size = f"{picture.shape[1]} x {picture.shape[0]} px, {kind}"
            print(
                f"{size:28} decode {whole * 1e6:7.0f} us, thumbnail {small * 1e6:5.0f} us ({small / whole:.1%})"
            )


def drawn(thumbnails: np.ndarray, number: int) -> np.ndarray:
    """Mixtures of two thumbnails each, deformed smoothly: as many different pictures as wanted."""
    rng = np.random.default_rng(1)
    grid = np.mgrid[: duplicates.SIDE, : duplicates.SIDE].astype(float)
    made = np.empty((number, *thumbnails.shape[1:]), np.uint8)
    for place in range(number):
        one, other = thumbnails[rng.integers(len(thumbnails), size=2)]
        share = rng.uniform(0.1, 0.4)
        moved = 40 * gaussian_filter(rng.standard_normal(grid.shape), (0, 6, 6), mode="wrap")
        mixture = (1 - share) * one + share * other
        made[place] = np.clip(
            map_coordinates(mixture, grid + moved, order=1, mode="nearest"), 0, 255
        )
    return made


def growth(thumbnails: np.ndarray, sizes: list[int]) -> None:
    """Print seconds, candidates tested and copies found, one picture in a hundred being a 3 % crop of another."""
    tested = []

    def counted(pictures: np.ndarray, candidates: duplicates.Candidates) -> np.ndarray:
        tested.append(len(candidates.pairs))
        return duplicates.confirm(pictures, candidates)

    every = drawn(thumbnails, max(sizes))
    print(
        f"{'pictures':>9} {'seconds':>8} {'CPU':>7} {'tested':>8} {'pairs':>7} {'planted':>8} {'found':>6}"
    )
    for size in sizes:
        planted = max(1, size // 100)
        some = every[:size].copy()
        for place in range(planted):
            crop = Image.fromarray(some[place]).resize(
                (duplicates.SIDE,) * 2, Image.Resampling.BICUBIC, box=(0.48, 0.48, 31.52, 31.52)
            )
            some[size - planted + place] = np.asarray(crop)
        tested.clear()
        start, processor = time.perf_counter(), time.process_time()
        pairs = duplicates.near_pairs(some, confirm=counted)
        seconds, processor = time.perf_counter() - start, time.process_time() - processor
        found = set(map(tuple, pairs.tolist())) & {
            (place, size - planted + place) for place in range(planted)
        }
        print(
            f"{size:9} {seconds:8.1f} {processor:7.1f} {sum(tested):8} {len(pairs):7} {planted:8} {len(found):6}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--films", type=Path, required=True, help="folder of images, searched to any depth"
    )
    parser.add_argument(
        "--copies", type=int, default=300, help="pictures of which copies are planted"
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[2_000, 20_000, 100_000])
    arguments = parser.parse_args()
    files = sorted(
        path for path in arguments.films.rglob("*") if path.suffix.lower() in images.SUFFIXES
    )
    if len(files) < 2:
        parser.error(f"{arguments.films} holds {len(files)} images; at least 2 are needed")
    thumbnails = recall(files, arguments.copies)
    cost_of_thumbnails(files)
    if arguments.sizes:
        growth(thumbnails, arguments.sizes)


if __name__ == "__main__":
    main()
