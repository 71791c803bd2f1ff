"""Writes a package to begin a method from."""

from __future__ import annotations

import importlib.util
import keyword
import re
from pathlib import Path
from string import Template

from avbench import registry
from avbench.resources import replacing
from avbench.types import AvbenchError, UsageError

_TEMPLATES = Path(__file__).with_name("skeletons")


def new_method(name: str, folder: Path) -> Path:
    """Write a package with a method that works, comments on what to change, and a test.

    Args:
        name: How the method shall be called, such as my-method.
        folder: Where the package's folder shall stand.

    Returns:
        The package's folder.

    Raises:
        UsageError: If the name is not lower-case words joined by '-', or is taken.
        AvbenchError: If something of that name is there already, or the disk refuses.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
        raise UsageError(f"method name {name!r}: use lower-case words joined by '-': my-method")
    module = name.replace("-", "_")
    if name in registry.registered("methods"):
        raise UsageError(f"{name} is a method already: choose another name")
    if keyword.iskeyword(module) or importlib.util.find_spec(module):
        raise UsageError(f"Python has a {module} already: choose another name")
    files = {
        "README.md": "README.md",
        "__init__.py": f"{module}/__init__.py",
        "pyproject.toml": "pyproject.toml",
        "recipes.toml": f"{module}/recipes.toml",
        "test.py": f"tests/test_{module}.py",
    }
    words = {
        "name": name,
        "module": module,
        "title": "".join(part.capitalize() for part in name.split("-")),
    }
    target = folder / name
    if target.exists():
        raise AvbenchError(f"{target} is there already: choose another name or --out")
    with replacing(target, folder=True) as temporary:
        for template, path in files.items():
            text = (_TEMPLATES / f"{template}.in").read_text(encoding="utf-8")
            (temporary / path).parent.mkdir(exist_ok=True)
            (temporary / path).write_text(Template(text).substitute(words), encoding="utf-8")
    return target
