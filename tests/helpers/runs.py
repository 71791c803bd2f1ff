"""Runs of methods without what makes real ones slow."""

from __future__ import annotations

from avbench.evaluation.apart import Job, run_here
from avbench.types import AvbenchError


def run_job(job: Job) -> tuple[str, str | None]:
    """Do a job as `run_apart` does, without the seconds a process takes to start."""
    try:
        run_here(job)
    except AvbenchError as error:
        return job.out, str(error)
    return job.out, None
