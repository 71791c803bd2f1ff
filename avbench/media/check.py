"""Looking at clips again that are there: the stage `validate`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from avbench.manifests.benchmark import Benchmark
from avbench.media.backend import each, pool
from avbench.media.ledger import Ledger, Outcome
from avbench.media.places import file_name, places_of, requests_of, sha256
from avbench.media.plan import ALL, Choice, Work
from avbench.media.probe import InvalidClip, validate
from avbench.media.storage import Folder
from avbench.resources import alone
from avbench.types import AvbenchError, Report


def check_clips(
    benchmark: Benchmark, *, workers: int, report: Report, choice: Choice = ALL
) -> tuple[list[str], list[str]]:
    """Decode all clips that are there again, and compare their checksums.

    A damaged clip is put aside and noted in the ledger, so that the next run makes it again. One
    cut to another time than the table has now is not looked at.

    Returns:
        The ids of the clips that are sound, and of the damaged ones.

    Raises:
        AvbenchError: If another run is at work on the benchmark, or no clip can be found.
        OSError: If a clip cannot be read.
    """
    wanted = set(choice.of(benchmark))
    benchmark = benchmark.base
    sound, damaged = [], []
    places = places_of(benchmark)
    with (
        alone(benchmark.home, f"checking {benchmark.name}"),
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
        pool("threading", workers=workers),
    ):
        rows = ledger.all()
        known = ((rows[clip.clip_id], clip) for clip in benchmark.manifest if clip.clip_id in rows)
        there = [
            row
            for row, clip in known
            if row.clip_id in wanted
            and row.status == "ok"
            and row.request in requests_of(clip, benchmark.spec)
        ]
        if there and not places.clips.files():
            raise AvbenchError(
                f"{places.clips}: none of {len(there)} clips is there: is a disk missing?"
            )
        check = _Check(places.clips, benchmark.spec.clip_seconds)
        for done, (row, finding) in enumerate(each(check, there), start=1):
            if not finding:
                sound.append(row.clip_id)
            else:
                damaged.append(row.clip_id)
                places.clips.move(file_name(row.clip_id), places.replaced)
                failed = Outcome(row.clip_id, "failed", row.source, row.request, attempts=0)
                ledger.record(replace(failed, failure="invalid", reason="damaged", detail=finding))
            report("checking clips", done, len(there))
    return sorted(sound), sorted(damaged)


def put_outdated_aside(benchmark: Benchmark) -> None:
    """Move away clips that were cut to another time or length than the table has now.

    Raises:
        AvbenchError: If another run is at work on the benchmark.
    """
    benchmark = benchmark.base
    if not (benchmark.home / "ledger.sqlite").is_file():
        return
    with (
        alone(benchmark.home, f"preparing {benchmark.name}"),
        Ledger(benchmark.home / "ledger.sqlite") as ledger,
    ):
        work = Work(benchmark, ALL.rows(benchmark), ledger)
        work.put_outdated_aside()


@dataclass(frozen=True)
class _Check:
    """Looks at one clip again, in a worker; what cannot be read is not taken for damaged."""

    clips: Folder
    seconds: float

    def __call__(self, row: Outcome) -> tuple[Outcome, str]:
        try:
            with self.clips.opened(file_name(row.clip_id)) as path:
                if sha256(path) != row.sha256:
                    return row, "its bytes have changed"
                validate(path, seconds=self.seconds)
        except FileNotFoundError:
            return row, "it is gone"
        except InvalidClip as error:
            return row, str(error)
        return row, ""
