"""The pages of the documentation site that are made of other files; a hook of mkdocs.

README, CHANGELOG and the lists of recipes and targets are copied with their links; notebooks become
pages; each public package gets a page of its names, and the command line one from typer.
"""

from __future__ import annotations

import importlib
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
COPIED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "export/README.md": "recipes.md",
    "engines/README.md": "targets-list.md",
    "export/eecompile_fashion_dit/README.md": "fashion-dit.md",
}
PACKAGES = (
    *("eecompile", "eecompile.compiler", "eecompile.tune", "eecompile.compare"),
    *("eecompile.evaluate", "eecompile.serve", "eecompile.diffusers", "eecompile.programs"),
    *("eecompile.programs.solvers", "eecompile.runtime", "eecompile.networks", "eecompile.store"),
)
LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Add the reference and the copied pages to the navigation."""
    sys.path[:0] = [str(ROOT), str(ROOT / "export")]
    os.environ["TERMINAL_WIDTH"] = "80"
    reference = next(part["Reference"] for part in config.nav if "Reference" in part)
    reference += [{name: f"reference/{name}.md"} for name in PACKAGES]
    config.nav.append(
        {
            "Project": [
                {"Recipes": "recipes.md"},
                {"Targets that ship": "targets-list.md"},
                {"The shipped network": "fashion-dit.md"},
                {"Contributing": "contributing.md"},
                {"Security": "security.md"},
                {"Changelog": "changelog.md"},
            ]
        }
    )
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    for source, name in COPIED.items():
        made(files, config, name, (ROOT / source).read_text("utf-8"), source)
    for path in sorted((ROOT / "docs" / "tutorials").glob("*.ipynb")):
        name = f"tutorials/{path.stem}.md"
        made(files, config, name, "\n\n".join(cells(path)), f"docs/{name}")
    told: set[str] = set()
    for package in PACKAGES:
        made(files, config, f"reference/{package}.md", "\n\n".join(names(package, told)), "")
    made(files, config, "reference/commands.md", commands(), "")
    return files


def made(files: Files, config: Any, name: str, text: str, source: str) -> None:
    files.append(File.generated(config, name, content=linked(text, source, name)))


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links of the documents themselves."""
    if page.file.generated_by:
        return markdown
    source = f"docs/{page.file.src_uri}"
    return linked(markdown, source, page.file.src_uri)


def linked(text: str, source: str, name: str) -> str:
    """A document's links as they are on the site; what is not on it is named, without a link."""
    here = PurePosixPath(source).parent

    def moved(found: re.Match[str]) -> str:
        mark, words, target, anchor = found.groups()
        path = posixpath.normpath((here / target).as_posix())
        path = path.removesuffix("/README.md") if path == "docs/README.md" else path
        if path in COPIED:
            place = COPIED[path]
        elif path.startswith("docs/") and (ROOT / path).is_file():
            place = path.removeprefix("docs/")
            place = re.sub(r"\.ipynb$", ".md", place)
        else:
            return words
        relative = posixpath.relpath(place, posixpath.dirname(name) or ".")
        return f"{mark}[{words}]({relative}{anchor or ''})"

    return LINK.sub(moved, text) if source else text


def cells(path: Path) -> Iterator[str]:
    """The cells of a notebook as Markdown."""
    yield from (
        f"```python\n{cell.source}\n```" if cell.cell_type == "code" else cell.source
        for cell in nbformat.read(path, as_version=4).cells
    )
    yield f"This page is a notebook: [{path.name}]({path.name}), to run and to change."


def names(package: str, told: set[str]) -> Iterator[str]:
    """What mkdocstrings is told: a package's own words, and each of its public names.

    A name that another package has ``told`` of is a link to it.
    """
    module = importlib.import_module(package)
    yield f"# {package}"
    yield (module.__doc__ or "").partition("\n\n")[0].replace("``", "`")
    for name in getattr(module, "__all__", ("use_engines", "export_pipeline", "EngineNetwork")):
        if name.startswith("__"):
            continue
        value = getattr(module, name)
        if not callable(value) or not hasattr(value, "__qualname__"):
            yield f"## `{package}.{name}`\n\n{said_of(module, name)}"
            continue
        place = f"{value.__module__}.{value.__qualname__}"
        heading = f"    options: {{ heading: {package}.{name}, toc_label: {name} }}"
        known = place in told
        yield f"[`{package}.{name}`][{place}]" if known else f"::: {place}\n{heading}"
        told.add(place)


def said_of(module: Any, name: str) -> str:
    """The words below a constant or an alias, in the package's modules."""
    for path in sorted(Path(module.__file__).parent.glob("*.py")):
        found = re.search(
            rf'^{name}\b[^\n]*=.*?^"""(.*?)"""', path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        if found:
            return found[1].replace("``", "`")
    return "A type."


def commands() -> str:
    """The command line as typer documents it."""
    import typer
    from typer.cli import get_docs_for_click

    from eecompile.cli.app import app

    command = typer.main.get_command(app)
    context = command.make_context("eecompile", [], resilient_parsing=True)
    return str(get_docs_for_click(obj=command, ctx=context, name="eecompile", title="Commands"))
