"""Build every network of keras.applications once, and write what estimates, doctor and docs/networks.md say of them.

    python benchmarks/networks.py            # writes src/equipoise/embed/networks.json and the table
    python benchmarks/networks.py --table    # only the table, from the file that is there

About 10 minutes of a processor; a quiet machine gives better rates. `tests/whole/slow/test_networks.py` builds them too
and compares.
"""

import argparse
import gc
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.embed import applications, backbones, blocks
from equipoise.embed.embedder import Embedder

ROOT = Path(__file__).resolve().parents[1]
LISTING = ROOT / "src/equipoise/embed/networks.json"
PAGE = ROOT / "docs/networks.md"
SIZE_PX = 224
BATCH = 8
#: Rates are of passes in batches of 32 on two quiet cores: this network made 18 a second there, and the others are
#: timed beside it.
REFERENCE, REFERENCE_RATE = "densenet201", 18.0
HEADER = (
    "| name | features | parameters | in the last block | proposed, least px | images a second |\n"
    "|---|---|---|---|---|---|"
)


def built(name: str) -> tuple[Any, applications.Answers]:
    """A network at 224 px, and what Keras says of it."""
    keras = backbones.load_keras()
    pixels = keras.Input((SIZE_PX, SIZE_PX, 3))
    network, answers = applications.build(keras, name, pixels)
    return keras.Model(pixels, network.output), answers


def seen(network: Any, answers: applications.Answers, rate: float) -> applications.Seen:
    """What is known of a network; its rate is handed in."""
    trained = set(blocks.last_block(network))
    inside = sum(layer.count_params() for layer in network.layers if layer.name in trained)
    return applications.Seen(
        file=answers.file,
        num_features=network.output_shape[-1],
        parameters=network.count_params(),
        trained_parameters=inside,
        default_size_px=answers.default_size_px,
        smallest_size_px=answers.smallest_size_px,
        images_per_second=rate,
    )


def seconds_per_batch(network: Any) -> float:
    """Of the time that processors worked: others may use the machine too."""
    embedder = Embedder(network, SIZE_PX)
    batch = np.full((BATCH, SIZE_PX, SIZE_PX, 3), 90, np.float32)
    embedder.features(batch)
    before = os.times()
    embedder.features(batch)
    after = os.times()
    return after.user + after.system - before.user - before.system


def table(listing: dict[str, applications.Seen]) -> str:
    """The table of docs/networks.md."""
    lines = [HEADER]
    for name, network in listing.items():
        share = network.trained_parameters / network.parameters
        cells = [
            f"`{name}`",
            f"{network.num_features:,}",
            f"{network.parameters / 1e6:.1f} M",
            f"{share:.0%}",
            f"{network.default_size_px}, {network.smallest_size_px}",
            f"{network.images_per_second:g}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(page: str, listing: dict[str, applications.Seen]) -> str:
    """A page with its table made anew."""
    before, _, rest = page.partition("<!-- networks -->\n")
    _, _, after = rest.partition("\n<!-- end -->")
    return f"{before}<!-- networks -->\n{table(listing)}\n<!-- end -->{after}"


def main() -> None:
    """Write the listing and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", action="store_true", help="only the table")
    if not parser.parse_args().table:
        reference = seconds_per_batch(built(REFERENCE)[0])
        listing = {}
        for name in sorted(applications.names()):
            network, answers = built(name)
            rate = REFERENCE_RATE * reference / seconds_per_batch(network)
            listing[name] = vars(seen(network, answers, float(f"{rate:.2g}")))
            print(name, listing[name], flush=True)
            backbones.load_keras().backend.clear_session()
            gc.collect()
        lines = [f'  "{name}": {json.dumps(facts)}' for name, facts in listing.items()]
        LISTING.write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    known = {name: applications.seen(name) for name in sorted(applications.names())}
    PAGE.write_text(with_table(PAGE.read_text("utf-8"), known), "utf-8")


if __name__ == "__main__":
    main()
