"""Which part of a video a clip is."""

from __future__ import annotations

from pathlib import Path

import av

from avbench.manifests.manifest import Clip
from avbench.media.probe import TOLERANCE_S, InvalidClip, opened
from avbench.media.sources.base import SourceFile


def source_file(path: Path, clip: Clip, *, is_cut: bool, seconds: float) -> SourceFile:
    """Tell a whole video from a clip already cut, which may bear the same name.

    Args:
        path: The video.
        clip: The clip it holds.
        is_cut: Whether its name says that it was cut already.
        seconds: Length of a clip.
    """
    if is_cut or clip.start_s is None:
        return SourceFile(path, None)
    try:
        with opened(path) as container:
            length_s = (container.duration or 0) / av.time_base
    except InvalidClip:
        return SourceFile(path, clip.start_s)  # whoever cuts it says what is wrong
    fits = clip.start_s + seconds <= length_s + TOLERANCE_S
    looks_cut = length_s <= seconds + 2 * TOLERANCE_S and not fits
    return SourceFile(path, None if looks_cut else clip.start_s)
