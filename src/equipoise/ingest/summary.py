"""What `ingest` found, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence

from equipoise.core import dicom, rasters
from equipoise.core.documents import ClassCount, IngestSummary
from equipoise.core.text import counted
from equipoise.ingest import leftovers
from equipoise.ingest.quarantine import Quarantined

#: Quarantined files that are named; the others are counted.
_NAMED = 10
#: Flags that need more than their name.
_FLAG_WORDS = {
    rasters.CHANNELS: "with further channels, which are not read",
    dicom.FRAMES: "with several frames, of which the first is read",
    dicom.BURNED_IN: "with text burned into the picture (BurnedInAnnotation), which may name a person",
    dicom.OWN_WINDOW: "with signed values shown through the window of each file; ingest.window would show all alike",
    dicom.PRIVATE: "with private DICOM tags, which may name a person",
}


def summary_text(
    summary: IngestSummary, quarantined: Sequence[Quarantined], remarks: Sequence[str] = ()
) -> str:
    """What is shown when `ingest` has run: counts by class, what is odd, and what was left out.

    Args:
        summary: The counts.
        quarantined: The files that were left out.
        remarks: Further sentences, of the dataset.
    """
    lines = [
        f"{summary.images} usable images of {summary.patients} patients ({summary.completeness})"
    ]
    for name, count in summary.by_class.items():
        lines.append(_class_line(name, count, summary))
    lines.append(f"  imbalance 1:{summary.imbalance_ratio:.1f}; {_other_files(summary)}")
    lines += _remarks(summary)
    lines += [f"  {remark}" for remark in remarks]
    lines += _quarantine_lines(summary, quarantined)
    return "\n".join(map(_printable, lines))


def _printable(line: str) -> str:
    """A line in which names of files with line breaks and other controls are spelled out."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda control: repr(control[0])[1:-1], line)


def _other_files(summary: IngestSummary) -> str:
    """What was left out by its name, by kind and count."""
    text = f"{summary.other_files_ignored} other files ignored"
    if not summary.left_out:
        return text
    advice = leftovers.advice_to_keep(summary.left_out)
    return f"{text}: {leftovers.in_words(summary.left_out)}{advice}"


def _class_line(name: str, count: ClassCount, summary: IngestSummary) -> str:
    roles = []
    if name == summary.positive_class:
        roles.append("positive")
    if name in summary.minority_classes:
        roles.append("minority")
    role = f" ({', '.join(roles)})" if roles else ""
    share = f"{100 * count.image_share:.1f} %"
    return f"  {name}{role}: {count.images} images ({share}), {count.patients} patients"


def _remarks(summary: IngestSummary) -> list[str]:
    """What is not the case in every study."""
    remarks = []
    if summary.selection:
        remarks.append(f"  only {summary.selection}: {summary.not_selected} images left out")
    if summary.near_copies:
        remarks.append(
            f"  {summary.near_copies} near copies stay with the patient of the picture they resemble"
        )
    if summary.alike:
        share = 100 * summary.alike / summary.files_seen
        remarks.append(
            f"  {summary.alike} pictures ({share:.1f} % of the files) look nearly alike in groups too large "
            f"for copies: they were not joined"
        )
        remarks.append(
            "    look at some of them: where they are copies, say so by patient ids or leave them out; "
            "ingest.near_copies: off looks for exact copies only"
        )
    if summary.pseudonymised:
        remarks.append(
            f"  ids are keyed hashes; the way back lies in data/local/{summary.study}.csv, "
            f"on this machine only"
        )
    if not summary.patient_ids:
        remarks.append(
            "  no patient ids: every image counts as a patient, and intervals will be per image"
        )
    if summary.grey_levels is not None:
        remarks += [f"  {line}" for line in summary.grey_levels.lines]
    odd = [_flag_text(summary, flag) for flag, count in summary.flagged.items() if count]
    if odd:
        remarks.append(f"  kept, and worth a look: {', '.join(odd)}")
    return remarks


def _flag_text(summary: IngestSummary, flag: str) -> str:
    text = f"{summary.flagged[flag]} {_FLAG_WORDS.get(flag, flag)}"
    if flag in summary.fewest_levels:
        text += f" (as few as {summary.fewest_levels[flag]} of 256 grey levels left)"
    return text


def _quarantine_lines(summary: IngestSummary, quarantined: Sequence[Quarantined]) -> list[str]:
    if not quarantined:
        return ["  0 files quarantined"]
    lines = [f"  {counted(len(quarantined), 'file')} quarantined:"]
    for item in quarantined[:_NAMED]:
        lines.append(f"    {item.image_id}: {item.reason}")
    further = len(quarantined) - _NAMED
    if further > 0:
        path = f"data/manifest/{summary.study}.quarantine.csv"
        lines.append(f"    and {further} more in {path}")
    return lines
