"""What an evaluation found: the schema of `result.json`, published as docs/schema/result.json."""

from __future__ import annotations

import json
import math
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetPydanticSchema,
    ValidationError,
    computed_field,
    model_validator,
)
from typing_extensions import TypedDict  # of typing, pydantic takes it from Python 3.12 on

from avbench.evaluation.metrics import METRICS, AccuracyMatrix, accuracy_per_step
from avbench.evaluation.statistics import (
    REPLICATES,
    Outcomes,
    Summary,
    bootstrap,
    interval_to_json,
    percentile_interval,
    summarise,
)
from avbench.learning.stopwatch import Phase
from avbench.resources import read_json
from avbench.types import AvbenchError, Modality, Residency, Split

FORMAT: Literal[4] = 4
# An older one that is read: what it lacks is null or empty.
_BEFORE = 3

Whole = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    """Strict, so that a number is no text; what is computed is not read back."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        json_schema_serialization_defaults_required=True,
    )


class Config(TypedDict):
    """Everything that decides the numbers."""

    benchmark: str
    """Its name, of a variant with the options."""
    variant: str | None
    """The options of a protocol variant, such as `seed=3,steps=6`."""
    fingerprint: str
    """Of the manifest."""
    method: str
    """Its registered name, or its class."""
    method_hash: str
    """SHA-256 of the files that define it."""
    access: Literal["incremental", "joint"]
    """Joint is a bound: it sees the data of all seen classes at every step."""
    modality: Modality
    """What the method looked at."""
    settings: dict[str, Any]
    """As resolved from defaults, recipe and command line."""
    memory: Whole
    """Capacity of the exemplar memory, in clips."""
    preset: str
    """Name of the features."""
    preset_hash: str
    """SHA-256 of every choice they depend on."""
    features_hash: str
    """SHA-256 of their values."""
    clips_hash: str
    """SHA-256 of the ids of all clips that have features."""
    device: str
    """Type of the device computed on, such as cpu or cuda."""
    version: str
    """Of avbench."""


# Code may treat it as any dictionary; it is checked, and published, as a `Config`.
_AS_CONFIG = GetPydanticSchema(lambda _, handler: handler(Config))


class ExemplarUse(_Record):
    """What the exemplar memory holds."""

    clips: Whole
    """Places filled; a clip chosen twice fills two."""
    bytes: Whole
    """Of its clips' features, in half precision; a clip chosen twice counts once."""


class StepCost(_Record):
    """What a step costs: learning it and predicting after it."""

    seconds: Annotated[float, Field(ge=0)]
    """Wall time."""
    peak_memory_bytes: Whole
    """Most memory the process had resident during the step, features mapped into it included."""
    peak_gpu_memory_bytes: Whole | None
    """Most memory that tensors took on the GPU during the step; null on a CPU."""
    trainable_parameters: Whole
    """Numbers that gradients reach at the end of the step, wherever the method holds them."""
    stored_parameters: Whole
    """Numbers of the checkpoint: all that is kept of what was learned, beside exemplars."""
    stored_bytes: dict[str, Whole] | None = None
    """What they take, by the first part of their names; null if not known, as before format 4."""
    exemplars: ExemplarUse
    """What the memory holds at the end of the step."""
    residency: Residency
    """Where the step's features lay while it was learned."""
    validation_questions: Whole | None = None
    """How often accuracy on validation clips was measured; null where nobody counted."""
    profile: dict[Phase, Annotated[float, Field(ge=0)]] | None
    """Wall time by phase, in seconds; of one inside another the inner counts. Null without
    `--profile`."""


class GitState(_Record):
    """The checkout that holds a method's code."""

    commit: str
    """What was checked out."""
    modified: bool
    """Whether tracked files differed from it."""
    changes: str | None = None
    """SHA-256 of how they differed; null if they did not, and before format 4."""


class Environment(_Record):
    """Where a step ran."""

    python: str
    platform: str
    machine: str
    cpu_count: int | None
    torch_threads: int
    gpu: str | None
    """The first GPU, used or not; null without one."""
    packages: dict[str, str]
    """Versions: of avbench, of what it requires, and of all else that was loaded."""
    git: GitState | None
    """Of the method's code; null where it is not in a checkout."""
    avbench_git: GitState | None = None
    """Of avbench's code, likewise; null before format 4."""
    avbench_hash: str | None = None
    """SHA-256 of avbench's source files; null before format 4."""

    def other_code(self, other: Environment) -> list[str]:
        """Return which parts of the code that computes are not those of another environment."""
        shared = self.packages.keys() & other.packages.keys()
        differ = {
            "Python": self.python != other.python,
            "avbench": self.avbench_hash != other.avbench_hash,
            "the method's checkout": self.git != other.git,
        }
        return [part for part, differs in differ.items() if differs] + sorted(
            name for name in shared if self.packages[name] != other.packages[name]
        )


class SeedRun(_Record):
    """One seed."""

    seed: Seed
    cost: list[StepCost]
    """By step."""
    environments: Annotated[list[Environment], Field(min_length=1)]
    """By step; before format 4 one, of where the seed ended."""
    correct: list[list[Whole]]
    """[t][i]: how many test clips of step i's classes were classified correctly after step t."""
    total: list[Whole]
    """[i]: how many test clips step i's classes have."""

    @model_validator(mode="before")
    @classmethod
    def _of_format_3(cls, record: Any) -> Any:
        if isinstance(record, dict) and "environment" in record:
            return record | {"environments": [record["environment"]]}
        return record

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.cost) != self.matrix.steps:  # the matrix checks itself
            raise ValueError("cost must have one record a step")
        if len(self.environments) not in (1, self.matrix.steps):
            raise ValueError("environments must have one record a step")
        return self

    @cached_property
    def matrix(self) -> AccuracyMatrix:
        """The counts."""
        return AccuracyMatrix(np.array(self.correct, np.int64), np.array(self.total, np.int64))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def accuracy_per_step(self) -> list[float]:
        """a_1..a_T, over the test clips of all classes seen by then."""
        return [float(value) for value in accuracy_per_step(self.matrix)]


class MetricSummary(_Record):
    """A metric over seeds, as fractions; null where there is none."""

    definition: str
    mean: float | None
    std: float | None
    """Unbiased."""
    interval_95: list[float] | None
    """Student's t-interval of the mean: other seeds, the same test clips."""
    per_seed: list[float | None]


class Bootstrap(_Record):
    """How sure the metrics are, over seeds and test clips."""

    seed: Seed
    """Of the draws."""
    replicates: Whole
    """How many draws."""
    over_seeds_and_clips_95: dict[str, list[float] | None]
    """95 % interval of each metric's mean: other seeds and other test clips."""

    @classmethod
    def of(cls, outcomes: Outcomes, *, seed: int = 0) -> Self:
        """Draw seeds and test clips of a method's outcomes anew, for every metric."""
        draws = bootstrap(outcomes, METRICS, seed=seed)
        intervals = {
            name: None if np.isnan(drawn).any() else interval_to_json(percentile_interval(drawn))
            for name, drawn in draws.items()
        }
        return cls(seed=seed, replicates=REPLICATES, over_seeds_and_clips_95=intervals)


class Result(_Record):
    """One method on one benchmark, over seeds."""

    format: Literal[4]
    """Version of this schema."""
    config: Annotated[dict[str, Any], _AS_CONFIG]
    """As `Config`."""
    coverage: dict[Split, Share]
    """Share of the benchmark's clips that had features, per split."""
    test_clips_hash: str
    """SHA-256 of the ids of the test clips used."""
    bootstrap: Bootstrap
    runs: Annotated[list[SeedRun], Field(min_length=1)]
    """One per seed."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(self.matrices) != len(self.runs):
            raise ValueError("a seed is there twice")
        if any(run.total != self.runs[0].total for run in self.runs):
            raise ValueError("seeds differ in their test clips")
        return self

    @computed_field  # type: ignore[prop-decorator]
    @property
    def partial(self) -> bool:
        """Whether some clips had no features: not comparable with results on all."""
        return min(self.coverage.values()) < 1

    @computed_field  # type: ignore[prop-decorator]
    @property
    def mixed_code(self) -> list[str]:
        """Which parts of the code were not the same for all steps and seeds: if any, not ranked."""
        first, *others = (each for run in self.runs for each in run.environments)
        return list(dict.fromkeys(part for other in others for part in first.other_code(other)))

    @computed_field  # type: ignore[prop-decorator]
    @property
    def metrics(self) -> dict[str, MetricSummary]:
        """Every metric over seeds, as the counts give it."""
        found = summarise(self.matrices.values())
        return {name: MetricSummary(**record) for name, record in found.items()}

    @property
    def matrices(self) -> dict[int, AccuracyMatrix]:
        """Counts of correct predictions, per seed."""
        return {run.seed: run.matrix for run in self.runs}

    @property
    def seconds(self) -> dict[int, float]:
        """Wall time, per seed."""
        return {run.seed: math.fsum(step.seconds for step in run.cost) for run in self.runs}

    @property
    def memory(self) -> dict[int, list[dict[str, int]]]:
        """What the exemplar memory held after each step, `clips` and `bytes`, per seed."""
        return {run.seed: [s.exemplars.model_dump() for s in run.cost] for run in self.runs}

    @property
    def exemplar_bytes(self) -> int:
        """Most that the exemplar memory took, after any step of any seed."""
        return max(step.exemplars.bytes for run in self.runs for step in run.cost)

    @property
    def stored_bytes(self) -> dict[str, int] | None:
        """What the largest checkpoint takes, of any step of any seed; None if not known of all."""
        stored = [step.stored_bytes for run in self.runs for step in run.cost]
        known = [each for each in stored if each is not None]
        return max(known, key=lambda each: sum(each.values())) if known == stored else None

    @property
    def seeds(self) -> list[int]:
        """The seeds run."""
        return list(self.matrices)

    @property
    def name(self) -> str:
        """The method, with its modality where that is not audio-visual."""
        return run_name(self.config["method"], self.config["modality"])

    @property
    def label(self) -> str:
        """The name with its marks."""
        return self.name + self.marks

    @property
    def features_hash(self) -> str:
        """SHA-256 of the values of the features."""
        return str(self.config["features_hash"])

    @property
    def marks(self) -> str:
        """What a reader must know beside the name: joint access, gaps in the data, mixed code."""
        marks = ["joint access"] * (self.config["access"] == "joint") + ["partial"] * self.partial
        marks += ["mixed code"] * (self.mixed_code != [])
        return f" ({', '.join(marks)})" if marks else ""

    def metric(self, name: str) -> Summary:
        """Summarise one of `METRICS` over seeds, as a fraction."""
        return Summary.of([float(METRICS[name](matrix)) for matrix in self.matrices.values()])

    def to_json(self) -> dict[str, Any]:
        """Return the record for `result.json`."""
        return self.model_dump(mode="json")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a `result.json`.

        Raises:
            AvbenchError: If the file is missing, damaged, or of another version of the schema.
        """
        remedy = "run avbench evaluate again"
        record = read_json(path, remedy=remedy)
        if record.get("format") == _BEFORE:
            record["format"] = FORMAT
        if record.get("format") != FORMAT:
            found = (
                f"but format {record['format']!s:.20}" if "format" in record else "nor of another"
            )
            raise AvbenchError(
                f"{path}: not a result of avbench in format {FORMAT}, {found}: {remedy}"
            )
        try:
            return cls.model_validate(record)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            reason = f"{place}: {first['msg']}" if place else first["msg"]
            raise AvbenchError(f"{path}: not a result of avbench ({reason}): {remedy}") from error


def run_name(method: str, modality: str) -> str:
    """Return the name of a method with its modality, where that is not audio-visual."""
    return method if modality == "audio-visual" else f"{method}-{modality}"


def schema() -> str:
    """Return the JSON Schema of `result.json`, as docs/schema/result.json has it."""
    published = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(published | Result.model_json_schema(mode="serialization"), indent=2)


if __name__ == "__main__":
    print(schema())
