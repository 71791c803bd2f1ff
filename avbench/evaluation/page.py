"""Pages made from the templates of this folder: Markdown and HTML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from avbench.resources import replacing


def write_page(path: Path, template: str, context: Mapping[str, Any]) -> None:
    """Fill in a template, `templates/NAME.jinja`, and write the page.

    HTML is escaped wherever a value is put in, Markdown where a template asks for it by `| md`.

    Raises:
        AvbenchError: If the place cannot be written to.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("avbench.evaluation"),
        autoescape=template.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["md"] = _markdown
    with replacing(path) as temporary:
        text = environment.get_template(f"{template}.jinja").render(context)
        temporary.write_text(text, encoding="utf-8")


def one_line(text: str) -> str:
    """Return a text without what would break a line."""
    return "".join(c if c.isprintable() else " " for c in text)


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~$&#!])", r"\\\1", one_line(text))
