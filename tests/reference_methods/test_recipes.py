"""Recipes are complete, and the authors'."""

from __future__ import annotations

import re
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

import reference_methods
from avbench import registry
from avbench.learning.method import resolve_settings
from avbench.manifests.benchmark import Benchmark
from avbench.manifests.spec import load_spec, shipped_names
from avbench.types import MODALITIES

RECIPES = tomllib.loads(
    (Path(reference_methods.__file__).parent / "recipes.toml").read_text(encoding="utf-8")
)
METHODS = [
    name
    for name, point in registry.registered("methods").items()
    if point.value.startswith("reference_methods.")
]

# Epochs of audio, visual and audio-visual input, on AVE, K-S and VS100, as the authors ran them.
EPOCHS = {
    "finetune": ((300, 200, 150), (300, 150, 150), (300, 200, 200)),
    "oracle": ((300, 200, 150), (200, 100, 100), (300, 200, 200)),
    "lwf": ((300, 200, 200), (200, 200, 100), (300, 200, 200)),
    "icarl-nme": ((300, 200, 150), (200, 100, 100), (300, 200, 200)),
    "icarl-fc": ((300, 200, 150), (200, 100, 100), (300, 200, 200)),
    "ssil": ((300, 200, 200), (300, 100, 100), (300, 200, 200)),
    "afc-nme": ((300, 200, 150), (300, 100, 100), (300, 200, 200)),
    "afc-lsc": ((300, 200, 150), (300, 100, 100), (300, 200, 200)),
    "avcil": ((None, None, 200), (None, None, 200), (None, None, 200)),
}
PAPER = ("ave-ci", "ks-ci", "vs100-ci")
COMMON = {
    "batch_size": 256,
    "learning_rate": 1e-3,
    "weight_decay": 1e-4,
    "drop_last": True,
    "milestones": (),
    "selection": "best_val",
    "activation": "official",
    "temporal_audio_guidance": True,
    "precision": "float32",
}
HERDED = {"herding_replacement": True, "normalize_means": False}
ICARL = HERDED | {"icarl_classify": "softmax", "icarl_distill": "official"}
TASK_WISE = {"kl_direction": "official", "distillation_temperature": 2.0}
PAIRED = TASK_WISE | {"exemplar_batch_size": 128, "exemplar_selection": "random"}
AFC = HERDED | {"lambda_disc": 0.5, "margin": 0.0, "n_init": 10}
OWN = {
    "finetune": {},
    "oracle": {},
    "lwf": TASK_WISE,
    "icarl-nme": ICARL,
    "icarl-fc": ICARL,
    "ssil": PAIRED,
    "afc-nme": AFC,
    "afc-lsc": AFC,
    "avcil": PAIRED
    | {
        "temperature": 0.05,
        "lambda_class": 1.0,
        "lambda_vad": 0.5,
        "i_avss": True,
        "c_avss": True,
        "vad": True,
        "symmetric": False,
        "class_contrast": "official",
        "vad_reduction": "official",
    },
}
MEMORY = (340, 500, 1500)
LAMBDA_INSTANCE = (0.5, 0.1, 0.1)


def test_every_method_has_a_recipe_for_every_benchmark():
    shipped = {Benchmark.load(name).base.name for name in shipped_names()}
    assert RECIPES.keys() == {*shipped, "default"}
    assert shipped == {*PAPER, "toy-ci"}
    for recipes in RECIPES.values():
        assert recipes.keys() == set(METHODS)
    assert set(METHODS) == EPOCHS.keys() == OWN.keys()


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("number", range(3))
def test_recipes_are_the_authors(name, number):
    """All settings, so that a new one cannot change what a recipe means unseen."""
    method = registry.load("methods", name)
    for modality in method.modalities:
        epochs = EPOCHS[name][number][MODALITIES.index(modality)]
        expected = COMMON | OWN[name] | {"epochs": epochs}
        if method.uses_memory:
            expected["memory"] = MEMORY[number]
        if name == "avcil":
            expected["lambda_instance"] = LAMBDA_INSTANCE[number]
        found = resolve_settings(method, name, PAPER[number], modality, {})
        assert asdict(found) == expected


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("benchmark", RECIPES)
def test_recipes_fit_their_benchmark(name, benchmark):
    method = registry.load("methods", name)
    for modality in method.modalities:
        found = resolve_settings(method, name, benchmark, modality, {})
        if method.uses_memory and found.memory is not None:
            assert found.memory == load_spec(benchmark).memory


def test_modalities_are_the_papers():
    for name in METHODS:
        modalities = registry.load("methods", name).modalities
        assert set(modalities) == ({"audio-visual"} if name == "avcil" else set(MODALITIES))


def test_the_papers_forms_in_docs_are_settings_of_their_methods():
    page = Path(__file__).parents[2] / "docs" / "decisions" / "paper-and-code.md"
    families = {"AV-CIL": "avcil", "SS-IL": "ssil", "LwF": "lwf", "iCaRL": "icarl", "AFC": "afc"}
    found = 0
    for row in re.findall(r"^\| (.+?): .+\| (.*) \|$", page.read_text(), re.MULTILINE):
        prefixes = "" if row[0] == "all" else tuple(families[name] for name in row[0].split(", "))
        for key, value in re.findall(r"`(\w+)=([\w.,]+)`", row[1]):
            for name in (name for name in METHODS if name.startswith(prefixes)):
                method = registry.load("methods", name)
                usual = resolve_settings(method, name, "ave-ci", "audio-visual", {})
                chosen = resolve_settings(method, name, "ave-ci", "audio-visual", {key: value})
                assert getattr(chosen, key) != getattr(usual, key) or key == "epochs"
                found += 1
    assert found > 20
