"""What is wrong with a split: leaks between its parts, and what else a reader should know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from avbench.manifests.manifest import Manifest
from avbench.types import SPLITS, Split

_PAIRS: tuple[tuple[Split, Split], ...] = (
    ("test", "train"),
    ("val", "train"),
    ("test", "val"),
    ("train", "train"),
    ("val", "val"),
    ("test", "test"),
)
_EXAMPLES = 5


@dataclass(frozen=True)
class Step:
    """Size of one step; steps are counted from 1."""

    step: int
    classes: int
    train: int
    val: int
    test: int


@dataclass(frozen=True)
class Sharing:
    """Clips of one split against those of another, or against the others of the same.

    Attributes:
        split: Whose clips are counted.
        other: The split they are held against.
        clips: Clips whose source video has a clip in `other`.
        videos: How many source videos those are.
        same_label: Of the clips, those whose video has a clip of the same label in `other`.
        overlapping: Those that overlap a clip of `other` in time.
        back_to_back: Those that begin or end where a clip of `other` ends or begins.
    """

    split: Split
    other: Split
    clips: int
    videos: int
    same_label: int
    overlapping: int
    back_to_back: int


@dataclass(frozen=True)
class Balance:
    """How evenly the classes of a split are filled: clips per class."""

    split: Split
    smallest: int
    smallest_class: str
    median: float
    largest: int
    largest_class: str


@dataclass(frozen=True)
class Overlap:
    """Source videos that another benchmark has too.

    Attributes:
        benchmark: The other.
        videos: Source videos in both.
        clips: Clips of this benchmark that come from those.
        test_in_train: Test clips of this benchmark whose video is in the other's train.
        train_in_test: Train clips of this benchmark whose video is in the other's test.
    """

    benchmark: str
    videos: int
    clips: int
    test_in_train: int
    train_in_test: int


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        benchmark: The benchmark's name.
        fingerprint: Of its manifest.
        clips: How many there are.
        classes: How many there are.
        videos: Source videos, as far as they are known.
        clips_without_video: Clips of which the source video is not known.
        steps: Clips and classes per step and split.
        sharing: Source videos in two splits, or twice in one.
        duplicate_windows: Clips that show the same seconds of the same video as another clip.
        case_clashes: Clip ids that differ from another's in nothing but case.
        several_labels: Source videos with clips of more than one class: their labels by id.
        balance: Class imbalance per split.
        clips_per_class: Clips of every class, in class order, per split.
        missing_times: Clips of a known video without start or end per split.
        source_lists: Clips per split and per split of the source data set; "unknown" where the
            latter is not known.
        overlaps: Source videos that other benchmarks have too.
    """

    benchmark: str
    fingerprint: str
    clips: int
    classes: int
    videos: int
    clips_without_video: int
    steps: list[Step]
    sharing: list[Sharing]
    duplicate_windows: int
    case_clashes: int
    several_labels: dict[str, list[str]]
    balance: list[Balance]
    clips_per_class: dict[str, dict[str, int]]
    missing_times: dict[str, int]
    source_lists: dict[str, dict[str, int]]
    overlaps: list[Overlap]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON holds it, with `faults` beside the figures."""
        return asdict(self) | {"faults": self.faults()}

    def faults(self) -> list[str]:
        """Say in a sentence each what is wrong; nothing where nothing is."""
        found = []
        for pair in self.sharing:
            if pair.clips and pair.split != pair.other:
                found.append(
                    f"{pair.clips:,} {pair.split} clips share their source video with"
                    f" {pair.other}, {pair.same_label:,} of them with the same label; in time,"
                    f" {pair.overlapping:,} overlap and {pair.back_to_back:,} are back to back."
                )
        inside = sum(pair.overlapping for pair in self.sharing if pair.split == pair.other)
        counted = [
            (inside, "clips overlap another clip of their own split in time."),
            (self.duplicate_windows, "clips show the same seconds of the same video as another."),
            (self.case_clashes, "clip ids differ from another's in case only: some disks mix up."),
            (len(self.several_labels), "source videos have clips of more than one class."),
            (sum(self.missing_times.values()), "clips have no start or end in their video."),
            (self.clips_without_video, "clips name no source video: leaks cannot be seen."),
        ]
        found += [f"{count:,} {what}" for count, what in counted if count]
        crossed = [
            f"{count:,} {split} clips are in {source}"
            for split, row in self.source_lists.items()
            for source, count in row.items()
            if source != "unknown" and {split, source} & {"test"} and split != source and count
        ]
        if crossed:
            found.append(f"In the source data set's own lists, {', '.join(crossed)}.")
        found += [
            f"{o.test_in_train:,} test clips come from a video in train of {o.benchmark}."
            for o in self.overlaps
            if o.test_in_train
        ]
        return found

    def to_markdown(self) -> str:
        """Return it as a page to read."""
        parts = [
            f"# Audit of {self.benchmark}",
            f"{self.clips:,} clips of {self.videos:,} known source videos, {self.classes} classes"
            f" in {len(self.steps)} steps. Fingerprint of the manifest:\n`{self.fingerprint}`.",
            "## What is wrong with it",
            "\n".join(f"- {fault}" for fault in self.faults()) or "Nothing that an audit can see.",
            "## Clips and classes per step",
            _table(
                ["step", "classes", *SPLITS],
                [[s.step, s.classes, s.train, s.val, s.test] for s in self.steps],
            ),
            "## Source videos that come twice",
            "Clips of one split whose source video has another clip in a split, and those of them"
            " with\nthe same label, overlapping in time, or back to back.",
            _table(
                ["clips of", "against", "clips", "videos", "same label", "overlap", "back to back"],
                [list(asdict(pair).values()) for pair in self.sharing],
            ),
            f"Clips that show the same seconds as another: {self.duplicate_windows:,}. Clip ids"
            f" that differ in case\nonly: {self.case_clashes:,}; two equal ones no manifest can"
            " hold.",
            f"Source videos with clips of more than one class: {len(self.several_labels):,}."
            + "".join(
                f"\n- `{video}`: {', '.join(labels)}"
                for video, labels in list(self.several_labels.items())[:_EXAMPLES]
            ),
            "## Class imbalance",
            "Clips per class.",
            _table(
                ["split", "fewest", "class", "median", "most", "class", "most / fewest"],
                [
                    [
                        b.split,
                        b.smallest,
                        b.smallest_class,
                        f"{b.median:g}",
                        b.largest,
                        b.largest_class,
                        f"{b.largest / b.smallest:.1f}" if b.smallest else "-",
                    ]
                    for b in self.balance
                ],
            ),
            "## Missing time stamps",
            _table(
                ["split", "clips of a known video without start or end"],
                [list(item) for item in self.missing_times.items()],
            ),
            "## The source data set's own lists",
            self._source_lists(),
            "## Source videos that other benchmarks have too",
            _table(
                [
                    "benchmark",
                    "videos",
                    "clips here",
                    "test here, train there",
                    "train here, test there",
                ],
                [list(asdict(overlap).values()) for overlap in self.overlaps],
            ),
        ]
        return "\n\n".join(parts) + "\n"

    def _source_lists(self) -> str:
        columns = sorted({source for row in self.source_lists.values() for source in row})
        rows = [
            [split, *(row.get(source, 0) for source in columns)]
            for split, row in self.source_lists.items()
        ]
        return _table(["split here", *(f"{source} there" for source in columns)], rows)


def audit(manifest: Manifest, *, others: Sequence[Manifest] = ()) -> Audit:
    """Look for what is wrong with the split of a manifest.

    Args:
        manifest: What to audit.
        others: Other benchmarks whose source videos to compare.
    """
    frame = manifest.table.to_pandas()
    known = frame[frame["youtube_id"].notna()]
    counts = pd.crosstab(frame["label"], frame["split"])
    counts = counts.reindex(index=list(manifest.labels), columns=list(SPLITS), fill_value=0)
    labels_of = known.groupby("youtube_id")["label"].unique()
    labels_of = labels_of[labels_of.map(len) > 1]
    window = ["youtube_id", "start_s", "end_s"]
    timed = known.dropna(subset=window)
    source = frame["source_split"].fillna("unknown")
    lists = pd.crosstab(source, frame["split"]).reindex(columns=list(SPLITS), fill_value=0)
    missing = known.loc[known["start_s"].isna() | known["end_s"].isna(), "split"]
    return Audit(
        benchmark=manifest.name,
        fingerprint=manifest.fingerprint,
        clips=len(manifest),
        classes=len(manifest.labels),
        videos=known["youtube_id"].nunique(),
        clips_without_video=len(frame) - len(known),
        steps=[
            Step(step + 1, classes, *manifest.counts[step].tolist())
            for step, classes in enumerate(manifest.classes_per_step)
        ],
        sharing=[_sharing(known, *pair) for pair in _PAIRS],
        duplicate_windows=len(timed[timed.duplicated(window, keep=False)]),
        case_clashes=len(frame[frame["clip_id"].str.lower().duplicated(keep=False)]),
        several_labels={str(v): sorted(labels) for v, labels in labels_of.items()},
        balance=[_balance(split, counts[split]) for split in SPLITS],
        clips_per_class={
            split: {str(label): int(n) for label, n in counts[split].items()} for split in SPLITS
        },
        missing_times={split: int((missing == split).sum()) for split in SPLITS},
        source_lists={
            split: {str(name): int(n) for name, n in lists[split].items()} for split in SPLITS
        },
        overlaps=[_overlap(known, other) for other in others if _has_videos(other)],
    )


def _sharing(known: pd.DataFrame, split: Split, other: Split) -> Sharing:
    columns = ["clip_id", "youtube_id", "start_s", "end_s", "label"]
    ours = known.loc[known["split"] == split, columns]
    theirs = known.loc[known["split"] == other, columns]
    pairs = ours.merge(theirs, on="youtube_id", suffixes=("", "_other"))
    pairs = pairs[pairs["clip_id"] != pairs["clip_id_other"]]
    start, end = pairs["start_s"], pairs["end_s"]
    start_other, end_other = pairs["start_s_other"], pairs["end_s_other"]
    overlaps = (start < end_other) & (start_other < end)
    touches = (start == end_other) | (start_other == end)

    def clips(chosen: Any) -> int:
        return int(pairs.loc[chosen, "clip_id"].nunique())

    return Sharing(
        split=split,
        other=other,
        clips=int(pairs["clip_id"].nunique()),
        videos=int(pairs["youtube_id"].nunique()),
        same_label=clips(pairs["label"] == pairs["label_other"]),
        overlapping=clips(overlaps),
        back_to_back=clips(touches),
    )


def _balance(split: Split, counts: pd.Series[int]) -> Balance:
    values = counts.to_numpy()
    few, many = int(values.argmin()), int(values.argmax())
    return Balance(
        split=split,
        smallest=int(values[few]),
        smallest_class=str(counts.index[few]),
        median=float(np.median(values)),
        largest=int(values[many]),
        largest_class=str(counts.index[many]),
    )


def _has_videos(manifest: Manifest) -> bool:
    return bool(manifest.table["youtube_id"].null_count < len(manifest))


def _overlap(known: pd.DataFrame, other: Manifest) -> Overlap:
    theirs = other.table.select(["youtube_id", "split"]).to_pandas().dropna()
    shared = known[known["youtube_id"].isin(theirs["youtube_id"])]

    def clips(ours: Split, split: Split) -> int:
        videos = theirs.loc[theirs["split"] == split, "youtube_id"]
        return int(((shared["split"] == ours) & shared["youtube_id"].isin(videos)).sum())

    return Overlap(
        benchmark=other.name,
        videos=int(shared["youtube_id"].nunique()),
        clips=len(shared),
        test_in_train=clips("test", "train"),
        train_in_test=clips("train", "test"),
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")
