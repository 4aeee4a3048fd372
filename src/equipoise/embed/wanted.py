"""Which pictures and views of a study need a feature, and in which order they stand in its matrix."""

from __future__ import annotations

import pandas as pd

from equipoise.core.records import Manifest, minority_labels


def wanted_rows(manifest: Manifest, views: int, views_of: str) -> pd.DataFrame:
    """List the distinct pictures and views to embed, plain ones first, then view by view.

    Args:
        manifest: The usable images.
        views: The setting `embed.views`: augmented views beside the plain one.
        views_of: The setting `embed.views_of`: all, or only the classes of the minority.

    Returns:
        Columns sha256, view, and image_id of one image with this content.
    """
    distinct = manifest.table.drop_duplicates("sha256")
    plain = distinct[["sha256", "image_id", "label"]]
    viewed = plain
    if views_of != "all":
        minority = minority_labels(manifest.counts())
        is_viewed = plain["label"].isin(minority)
        viewed = plain[is_viewed]
    frames = [plain.assign(view=0)]
    for view in range(1, views + 1):
        of_view = viewed.assign(view=view)
        frames.append(of_view)
    rows = pd.concat(frames, ignore_index=True)
    return rows[["sha256", "view", "image_id"]]
