"""The documentation: its site builds without a warning, its prose is spelt, its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from eecompile.cli.app import app
from tests.conftest import ROOT

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("e*/*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r'(?:href|src)="(?!\w+:)([^"#?]+)[^"]*"')


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        if page.name == "404.html":  # its links begin at the root
            continue
        for link in LINK.findall(page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
    reference = (tmp_path / "reference" / "eecompile.html").read_text()
    for name in ("eecompile.Sampler", "eecompile.Program"):
        assert f"{name}" in reference


def test_the_prose_is_spelt() -> None:
    folders = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "export"]
    command = [sys.executable, "-m", "codespell_lib", *folders, "engines", "eecompile", ".github"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def commands(page: Path) -> Iterator[list[str]]:
    """The command lines of eecompile in a page's blocks."""
    for language, text in FENCE.findall(page.read_text()):
        if language in ("", "sh", "console", "bash"):
            for line in text.replace("\\\n", " ").splitlines():
                line = line.removeprefix("$ ").partition(" > ")[0]
                if line.startswith("eecompile "):
                    yield shlex.split(line, comments=True)[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_as_the_program_takes_them(page: Path) -> None:
    """Each is read as the program would read it; what they do is tested elsewhere."""
    group = typer.main.get_command(app)
    for name, *arguments in commands(page):
        if name.startswith("-"):
            continue
        command = group.commands[name]  # type: ignore[attr-defined]
        command.make_context(name, arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_other_blocks_can_be_read(page: Path) -> None:
    for language, text in FENCE.findall(page.read_text()):
        if language == "toml":
            tomllib.loads(text)
        for script in re.findall(r"^(?:\$ )?(scripts/\w+)", text, re.MULTILINE):
            assert (ROOT / script).is_file(), script
