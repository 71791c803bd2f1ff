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

        Either may be varied by options behind a colon, such as `ave-ci:seed=3` (another class
        order), `ks-ci:order=alphabetical`, `vs100-ci:steps=20` or `vs100-ci:steps=50+5x10` (other
        steps), `vs100-ci:first=50` (a larger first step).

        Example:
            >>> Benchmark.load("ave-ci").spec.steps
            4
            >>> Benchmark.load("vs100-ci:first=50").name
            'vs100-ci:steps=50+5x10'

        Raises:
            UsageError: If there is no such benchmark, or an option does not fit it.
            AvbenchError: If its TOML is not valid.
        """
        return cls(load_spec(name))

    @property
    def name(self) -> str:
        """The benchmark's name; of a variant, with its options in canonical form."""
        return self.spec.name

    @property
    def argument(self) -> str:
        """What a user types to name this benchmark on the command line."""
        if self.spec.variant:
            base = self.spec.path.stem if self.spec.is_shipped else self.spec.path
            return f"{base}:{self.spec.variant.text}"
        return self.name if self.spec.is_shipped else str(self.spec.path)

    @cached_property
    def base(self) -> Benchmark:
        """The benchmark whose clips and features this one uses: itself, unless derived."""
        root = self.spec.variant_of or self.spec
        if root.clips_of:
            return Benchmark.load(root.clips_of).base
        return self if root is self.spec else Benchmark(root)

    @cached_property
    def manifest(self) -> Manifest:
        """The clips: of a shipped benchmark the verified file, of your own built from its table.

        Raises:
            AvbenchError: If the file or table is missing or not valid.
        """
        if not self.spec.is_shipped:
            from avbench.manifests.builder import build  # pandas: slow to import

            return build(self.spec)
        if self.spec.variant and self.spec.variant_of:
            return Benchmark(self.spec.variant_of).manifest.varied(self.name, self.spec.variant)
        manifest = Manifest.read(self.manifest_path)
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
        return resources.home() / self.base.name
