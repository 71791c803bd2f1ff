"""A benchmark: its facts and its clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from avbench import resources
from avbench.manifests.manifest import Manifest
from avbench.manifests.spec import BenchmarkSpec, load_spec
from avbench.types import AvbenchError


@dataclass(frozen=True)
class Benchmark:
    """One benchmark, by the name users give it.

    Attributes:
        spec: The facts of its TOML.
    """

    spec: BenchmarkSpec

    @classmethod
    def load(cls, name: str) -> Benchmark:
        """Load a shipped benchmark by name, or one of your own by the path of its TOML.

        Example:
            >>> Benchmark.load("ave-ci").spec.steps
            4

        Raises:
            UsageError: If there is no such benchmark.
            AvbenchError: If its TOML is not valid.
        """
        return cls(load_spec(name))

    @property
    def name(self) -> str:
        """The benchmark's name."""
        return self.spec.name

    @property
    def argument(self) -> str:
        """What a user types to name this benchmark on the command line."""
        return self.name if self.spec.is_shipped else str(self.spec.path)

    @cached_property
    def manifest(self) -> Manifest:
        """The clips: of a shipped benchmark the verified file, of your own built from its table.

        Raises:
            AvbenchError: If the file or table is missing or not valid.
        """
        if self.spec.is_shipped:
            manifest = Manifest.read(self.manifest_path)
        else:
            from avbench.manifests.builder import build  # pandas: slow to import

            manifest = build(self.spec)
        if manifest.classes_per_step != self.spec.classes_per_step:
            raise AvbenchError(f"{self.name}: manifest and {self.spec.path} differ in their steps")
        return manifest

    @property
    def manifest_path(self) -> Path:
        """Where the manifest of a shipped benchmark lies."""
        return resources.shipped("splits") / f"{self.name}.parquet"

    @property
    def home(self) -> Path:
        """The folder of this benchmark's clips and features, in the user's data folder."""
        return resources.home() / self.name
