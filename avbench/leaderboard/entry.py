"""One line of a leaderboard, and what its submitter says about it."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from avbench import registry
from avbench.evaluation.metrics import METRICS, OF_EARLIER_STEPS, accuracy_per_step
from avbench.evaluation.score import Score
from avbench.evaluation.statistics import Summary
from avbench.types import Modality

_DECIMALS = 4
_NAME: Final = "^[a-z0-9]+(-[a-z0-9]+)*$"
_URL: Final = (
    r"^https?://([A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z]{2,}(:[0-9]{1,5})?"
    r"([/?#][!#-;=?-\[\]_a-z~]*)?$"
)
_HASH: Final = "^[0-9a-f]{64}$"
_MEANING = {
    _NAME: "must be lowercase letters and digits, in words joined by single dashes",
    _URL: "must be an http or https address of a named host, without a user",
    _HASH: "must be the 64 lowercase digits of a SHA-256",
}
_OTHER: Final = "other:"
_LOOKS = str.maketrans({"0": "o", "1": "l", "i": "l", "-": None})
# Scripts with letters that look like those of another.
_ALIKE = {"ARMENIAN", "CHEROKEE", "COPTIC", "CYRILLIC", "GREEK", "LATIN", "LISU"}
# Letters and marks that show nothing.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


def outline(name: str) -> str:
    """Return what the eye makes of a name: names of equal outline look alike."""
    return name.translate(_LOOKS).replace("rn", "m").replace("vv", "w")


def preset_of(encoder: str) -> str:
    """Return how boards call the features of a registered encoder.

    Encoders of other packages are marked, since nobody who checks a board need have them.
    """
    if encoder in registry.own("encoders"):
        return encoder
    return _OTHER + re.sub("[^a-z0-9]+", "-", encoder.lower()).strip("-")


def _ascii(text: str) -> str:
    if not text.isascii():
        raise ValueError("must be plain ASCII")
    return text


def _visible(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("must be printable, without spaces around it")
    if not any(character.isalnum() for character in text):
        raise ValueError("must hold a letter or a digit")
    return text


def _personal(text: str) -> str:
    """Refuse a name of a person that shows nothing, or may show another's."""
    if unicodedata.normalize("NFKC", text) != text:
        raise ValueError("must be in Unicode's normal form NFKC")
    others = [character for character in text if not character.isascii()]
    if _INVISIBLE.search(text) or any(unicodedata.category(c)[0] not in "LM" for c in others):
        raise ValueError("must hold letters, and punctuation of ASCII only")
    scripts = {unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha()}
    if len(scripts & _ALIKE) > 1:
        raise ValueError(f"must not mix {' and '.join(sorted(scripts & _ALIKE)).title()} letters")
    return text


def _host_as_shown(url: str) -> str:
    if "xn--" in (urlsplit(url).hostname or ""):
        raise ValueError("must not name a host in Punycode")
    return url


def _preset(name: str) -> str:
    own = registry.own("encoders")
    other = name.removeprefix(_OTHER)
    if name in own:
        return name
    if other == name or not re.fullmatch(_NAME, other):
        raise ValueError(f"must be {', '.join(own)} or, of others, such as other:my-encoder")
    if outline(other) in {outline(preset) for preset in own}:
        raise ValueError(f"must not look like one of {', '.join(own)}")
    return name


Name = Annotated[str, Field(max_length=64, pattern=_NAME)]
Text = Annotated[
    str, Field(min_length=1, max_length=200), AfterValidator(_visible), AfterValidator(_ascii)
]
Author = Annotated[
    str, Field(min_length=1, max_length=200), AfterValidator(_visible), AfterValidator(_personal)
]
Preset = Annotated[str, Field(min_length=1, max_length=70), AfterValidator(_preset)]
Url = Annotated[str, Field(max_length=500, pattern=_URL), AfterValidator(_host_as_shown)]
Hash = Annotated[str, Field(pattern=_HASH)]
Bytes = Annotated[int, Field(ge=0, lt=2**53)]
Digest = Annotated[
    Hash | None, Field(description="SHA-256 of the rest of the entry and its board's benchmark")
]
Percent = Annotated[float, Field(ge=-100, le=100)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1, max_length=100)
]


class Record(BaseModel):
    """What is read from files: exactly the fields there are, of exactly their types."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, hide_input_in_errors=True
    )


class Submission(Record):
    """What a submitter says about an entry; nothing of it can be computed from predictions."""

    name: Name = Field(description="unique on its board, such as my-method")
    method: Text = Field(description="how people call the method")
    authors: tuple[Author, ...] = Field(min_length=1, max_length=100, description="who made it")
    url: Url = Field(description="address of the paper or the code")
    benchmark: Name = Field(description="what was predicted")
    fingerprint: Hash = Field(description="of the benchmark's manifest")
    modality: Modality = Field(description="audio, visual or audio-visual")
    access: Literal["incremental", "joint"] = Field(
        description="incremental, or joint for a bound that sees the data of all seen classes"
    )
    exemplars: int = Field(ge=0, lt=10**9, description="capacity of the exemplar memory, in clips")
    exemplar_bytes: Bytes | None = Field(
        default=None, description="most that the features of exemplars take, in bytes, if known"
    )
    stored_bytes: Bytes | None = Field(
        default=None,
        description="most that a checkpoint takes, the network included, in bytes, if known",
    )
    pretraining: Text = Field(
        description="data that encoders or network were trained on before, or none"
    )
    preset: Preset = Field(
        description="name of the features, such as filterbank, or other:my-encoder for features"
        " that avbench does not make; entries of other features do not compete"
    )
    preset_hash: Hash | None = Field(
        default=None, description="of the feature store; an entry without one does not compete"
    )
    features_hash: Hash | None = Field(
        default=None, description="of the values of the features, if avbench made them"
    )
    coverage: float = Field(
        gt=0, le=1, description="share of the clips of train and val that were there"
    )
    seconds: Annotated[float, Field(gt=0, lt=1e9)] | None = Field(
        default=None, description="mean wall time of one seed, if known"
    )
    repeats: Name | None = Field(
        default=None,
        description="entry whose predictions these are bound to repeat, if there is one",
    )

    @field_validator("name")
    @classmethod
    def _unprinted(cls, name: str) -> str:
        if outline(name).startswith("paper"):
            raise ValueError("must not begin with paper: so do numbers as reported")
        return name


class Metric(Record):
    """A metric over seeds, in percent."""

    mean: Percent
    std: Annotated[float, Field(ge=0)] | None = Field(description="unbiased; null for one seed")
    interval_95: tuple[float, float] | None = Field(description="Student's; null for one seed")
    per_seed: tuple[Percent, ...]

    @classmethod
    def of(cls, summary: Summary) -> Metric:
        """Convert a summary of fractions."""
        low, high = summary.interval
        known = not math.isnan(low)
        return cls(
            mean=_percent(summary.mean),
            std=_percent(summary.std) if known else None,
            interval_95=(_percent(low), _percent(high)) if known else None,
            per_seed=tuple(_percent(value) for value in summary.per_seed),
        )


class Verified(Submission):
    """An entry whose every number follows from the predictions kept beside the board."""

    kind: Literal["verified"] = "verified"
    seeds: Seeds
    predictions: Hash = Field(description="SHA-256 of the file of predictions")
    metrics: dict[Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")], Metric]
    accuracy_per_step: tuple[Percent, ...] = Field(description="mean over seeds")
    accuracy_matrix: tuple[tuple[Percent, ...], ...] = Field(
        description="row t: accuracy after step t on the classes of steps 1..t, mean over seeds"
    )
    digest: Digest = None

    @model_validator(mode="after")
    def _whole(self) -> Verified:
        if "mean_accuracy" not in self.metrics:
            raise ValueError("a verified entry has a mean accuracy")
        for metric in self.metrics.values():
            if len(metric.per_seed) != len(self.seeds):
                raise ValueError("a metric has a value for every seed")
            if (metric.interval_95 is None) != (len(self.seeds) == 1):
                raise ValueError("a metric of several seeds has an interval, of one has none")
        return self

    @classmethod
    def of(cls, submission: Submission, score: Score, sha256: str) -> Verified:
        """Compute an entry.

        Args:
            submission: What is said about it.
            score: Of its predictions, with seeds.
            sha256: Of their file.
        """
        matrices = score.matrices
        bound = submission.access == "joint" or matrices[0].steps == 1
        accuracy = np.mean([matrix.accuracy for matrix in matrices], axis=0)
        return cls(
            **{field: getattr(submission, field) for field in Submission.model_fields},
            seeds=tuple(seed for seed in score.seeds if seed is not None),
            predictions=sha256,
            metrics={
                name: Metric.of(score.metric(name))
                for name in METRICS
                if not (bound and name in OF_EARLIER_STEPS)
            },
            accuracy_per_step=_percents(np.mean([accuracy_per_step(m) for m in matrices], axis=0)),
            accuracy_matrix=tuple(_percents(row[: step + 1]) for step, row in enumerate(accuracy)),
        )

    @property
    def mean_accuracy(self) -> float:
        """Eq. 15, in percent, mean over seeds."""
        return self.metrics["mean_accuracy"].mean

    @property
    def average_forgetting(self) -> float | None:
        """Eq. 16, in percent; None for a bound."""
        metric = self.metrics.get("average_forgetting")
        return metric.mean if metric else None


class Reported(Record):
    """An entry with numbers as somebody printed them: nobody has checked them."""

    kind: Literal["reported"] = "reported"
    name: Name
    method: Text
    modality: Modality
    access: Literal["incremental", "joint"]
    source: Text = Field(description="where the numbers are printed")
    url: Url
    mean_accuracy: Percent
    average_forgetting: Percent | None = None
    seeds: int | None = Field(default=None, ge=1, description="how many, if known")
    digest: Digest = None


Entry = Annotated[Verified | Reported, Field(discriminator="kind")]


def reason(error: ValidationError) -> str:
    """Return what is wrong with a record, in a line."""
    first, *others = error.errors(include_url=False, include_input=False)
    where = ".".join(str(part) for part in first["loc"] if part not in ("verified", "reported"))
    more = f" (and {len(others)} more)" if others else ""
    context = first.get("ctx", {})
    why = context.get("error") or _MEANING.get(context.get("pattern", "")) or first["msg"].lower()
    return f"{where or 'record'}: {why}{more}"[:300]


def _percent(fraction: float) -> float:
    return round(100 * float(fraction), _DECIMALS) + 0.0  # not -0.0


def _percents(fractions: Sequence[float]) -> tuple[float, ...]:
    return tuple(_percent(value) for value in fractions)
