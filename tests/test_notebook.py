"""What notebooks show: HTML that is well formed, and holds nothing that a browser would obey."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile import Exit, ExitSchedule, FakeEngine, Interface, Program, Sampler, Sampling, State
from eecompile.notebook import facts_html, table_html
from eecompile.store import open_bundle, open_engine_set


class Tags(HTMLParser):
    """Checks that elements nest, and counts them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.words = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.open.append(tag)
        self.counts[tag] = self.counts.get(tag, 0) + 1

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"


def sampler() -> Sampler:
    interface = Interface(
        name="any",
        exits=(3, 12),
        state=State(shape=(5,)),
        schedules={"fast": ExitSchedule.parse("12:0.25,3")},
        sampling=Sampling(schedule="fast"),
    )
    return Sampler(FakeEngine((3, 12), lambda depth, x, t, given: np.zeros_like(x)), interface)


def test_a_schedule_is_drawn_over_time() -> None:
    schedule = ExitSchedule.parse("12:0.25,forecast1:0.5,3")
    assert repr(schedule) == "<ExitSchedule 12:0.25,forecast1:0.5,3>"
    tags = Tags(schedule._repr_html_())
    assert tags.counts["rect"] == 3
    assert "t from 0.25 T to 0.5 T: forecast1" in tags.words


def test_a_long_schedule_is_cut_above_its_bars() -> None:
    schedule = ExitSchedule.from_slices([12, 6] * 30)
    tags = Tags(schedule._repr_html_())
    assert "…" in tags.words
    assert tags.counts["rect"] == 60


def test_a_program_is_drawn_step_by_step() -> None:
    program = sampler().program("ddim", 8, "fast")
    tags = Tags(program._repr_html_())
    assert tags.counts["rect"] == 8
    assert "step 8, t = 124: 12" in tags.words
    assert "ddim" in tags.words


def test_an_open_program_says_so() -> None:
    made = sampler().program("ddim", 4, 12)
    open_ = Program(
        solver=made.solver,
        initial=made.initial,
        steps=made.with_choices(lambda time: None).steps,
    )
    assert "its choices are open" in Tags(open_._repr_html_()).words


def test_a_sampler_says_what_it_samples() -> None:
    made = sampler()
    assert repr(made) == "<Sampler of any: exits 3, 12>"
    words = Tags(made._repr_html_()).words
    for part in ("Sampler of any", "fast", "blocks over time, of 12"):
        assert part in words


def test_folders_say_what_they_hold(small_bundle: Path, small_sets: dict[str, Path]) -> None:
    bundle, engines = open_bundle(small_bundle), open_engine_set(small_sets["chained"])
    assert repr(bundle).startswith("<BundleManifest fashion-dit: exits 1, 2, 4; ")
    assert repr(engines).startswith("<EngineManifest fashion-dit for cpu-chained: exits 1, 2, 4; ")
    for each in (bundle, engines):
        tags = Tags(each._repr_html_())
        assert tags.counts["tr"] > 3 + 3
        assert "1x28x28" in tags.words


def test_names_are_text() -> None:
    evil = "<script>alert(1)</script>"
    for made in (facts_html(evil, {evil: evil}), table_html([evil], [[evil]])):
        assert "script" not in Tags(made).counts


@pytest.mark.parametrize("choice", [Exit(3), 3])
def test_one_choice_fills_the_picture(choice: Any) -> None:
    assert 'width="719.0"' in ExitSchedule.constant(choice)._repr_html_()
