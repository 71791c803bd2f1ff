"""Boards as pages: Markdown for the repository, one HTML file for everybody else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

from avbench.leaderboard.board import Board
from avbench.leaderboard.entry import Reported, Verified
from avbench.leaderboard.evidence import kept
from avbench.leaderboard.ranking import Place, estimate, places, unequal_values
from avbench.manifests.spec import load_spec, shipped_names
from avbench.types import AvbenchError

_EXPLANATION = (
    "Ranked entries were recomputed from the predictions of every test clip, kept in"
    " [predictions/](predictions/). An equals sign marks ties with the first of the rank: the 95 %"
    " interval of the difference, over seeds and test clips, holds 0."
    " Only entries with the same features, all clips, at least three seeds and incremental access"
    " compete, and one that is alone with its features has no rank. The others are listed: bounds,"
    " and numbers as reported, which nobody has checked."
)


def render(boards: Path) -> dict[str, str]:
    """Return the pages of a folder of boards, by file name.

    Raises:
        AvbenchError: If the folder has no board, or a file is not one.
    """
    read = [
        Board.read(boards / f"{name}.json")
        for name in shipped_names()
        if (boards / f"{name}.json").is_file()
    ]
    if not read:
        raise AvbenchError(f"no leaderboard in {boards}: give --boards of a checkout")
    ranked = {board.benchmark: ranked_board(board, boards) for board in read}
    return {"README.md": _markdown(ranked), "index.html": _html(ranked)}


def ranked_board(board: Board, boards: Path) -> list[Place]:
    """Rank a board by the predictions beside it.

    Raises:
        AvbenchError: If predictions are missing or were changed.
    """
    return places(board, lambda entry: estimate(kept(entry, boards)))


def row(place: Place) -> dict[str, Any]:
    """Return an entry and its place as one flat record, for JSON and for the page."""
    entry = place.entry
    record: dict[str, Any] = {
        "rank": place.rank,
        "tied": place.tied,
        "shown": place.shown,
        "remark": place.remark,
        "name": entry.name,
        "method": entry.method,
        "modality": entry.modality,
        "access": entry.access,
        "verified": isinstance(entry, Verified),
        "url": entry.url,
        "mean_accuracy": entry.mean_accuracy,
        "average_forgetting": entry.average_forgetting,
    }
    if isinstance(entry, Reported):
        return record | {"source": entry.source}
    accuracy = entry.metrics["mean_accuracy"]
    return record | {
        "authors": list(entry.authors),
        "std": accuracy.std,
        "interval_95": accuracy.interval_95,
        "last_accuracy": entry.metrics["last_accuracy"].mean
        if "last_accuracy" in entry.metrics
        else None,
        "seeds": len(entry.seeds),
        "preset": entry.preset,
        "features": place.features,
        "features_hash": entry.features_hash,
        "pretraining": entry.pretraining,
        "exemplars": entry.exemplars,
        "exemplar_bytes": entry.exemplar_bytes,
        "stored_bytes": entry.stored_bytes,
        "seconds": entry.seconds,
        "accuracy_per_step": list(entry.accuracy_per_step),
        "accuracy_matrix": [list(accuracies) for accuracies in entry.accuracy_matrix],
    }


def accuracy_text(place: Place) -> str:
    """Return the mean accuracy with its deviation, in percent."""
    entry = place.entry
    std = entry.metrics["mean_accuracy"].std if isinstance(entry, Verified) else None
    return f"{entry.mean_accuracy:.2f}" + ("" if std is None else f" ± {std:.2f}")


def forgetting_text(place: Place) -> str:
    """Return the average forgetting in percent, or a dash."""
    forgetting = place.entry.average_forgetting
    return "-" if forgetting is None else f"{forgetting:.2f}"


def kept_text(place: Place) -> str:
    """Return what exemplars and the checkpoint take at most, in MB, or a dash."""
    entry = place.entry
    if not isinstance(entry, Verified):
        return "-"
    sizes = (entry.exemplar_bytes, entry.stored_bytes)
    known = [f"{size / 1e6:.1f}" for size in sizes if size is not None]
    return " + ".join(known) if len(known) == len(sizes) else "-"


def standing_text(place: Place) -> str:
    """Return whether an entry is verified, and why it does not compete."""
    verified = "verified" if isinstance(place.entry, Verified) else ""
    return ", ".join(part for part in (verified, place.remark) if part)


def _markdown(ranked: dict[str, list[Place]]) -> str:
    parts = [
        "<!-- Made by avbench leaderboard render; do not edit. -->",
        "# Leaderboards",
        _EXPLANATION,
        "[index.html](index.html) has the same with curves and matrices.",
        "[How to submit](../docs/leaderboards.md).",
    ]
    for benchmark, found in ranked.items():
        parts.append(f"## {benchmark}")
        if not found:
            parts.append("No entries yet.")
            continue
        lines = [
            "| rank | entry | method | input | features | values | accuracy | forgetting"
            " | exemplars | exemplars + checkpoint, MB | |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for place in found:
            entry = place.entry
            exemplars = f"{entry.exemplars:,}" if isinstance(entry, Verified) else "-"
            cells = [
                place.shown,
                entry.name,
                f"[{_escaped(entry.method)}]({_address(entry.url)})",
                entry.modality,
                _escaped(place.features),
                place.values,
                accuracy_text(place),
                forgetting_text(place),
                exemplars,
                kept_text(place),
                standing_text(place)
                + (f": {_escaped(entry.source)}" if isinstance(entry, Reported) else ""),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        parts.append("\n".join(lines))
        parts += [f"Warning: {_escaped(warning)}." for warning in unequal_values(found)]
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    """Return text that Markdown and HTML take literally."""
    return re.sub(r"[^\w .,-]|_|(?<=www)\.", lambda found: f"&#{ord(found[0])};", text)


def _address(url: str) -> str:
    """Return an address that ends where it should in Markdown and in a table."""
    return re.sub(r"[()\[\]*_~]", lambda found: f"%{ord(found[0]):02X}", url)


def _html(ranked: dict[str, list[Place]]) -> str:
    folder = files("avbench.leaderboard") / "page"
    style, script, page = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html")
    )
    data = [
        {
            "benchmark": benchmark,
            "title": load_spec(benchmark).title,
            "rows": [row(place) for place in found],
            "warnings": unequal_values(found),
        }
        for benchmark, found in ranked.items()
    ]
    # No `<` may stand in the data: nothing in it can end the script element or begin another.
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    values = {
        "STYLE": style,
        "STYLE_HASH": _integrity(style),
        "SCRIPT": script,
        "SCRIPT_HASH": _integrity(script),
        "DATA": text,
    }
    return re.sub(r"\{\{([A-Z_]+)\}\}", lambda found: values[found[1]], page)


def _integrity(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
