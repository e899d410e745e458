"""The page at /, in Chromium, with a real server behind it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eecompile import Sampler
from eecompile.programs.interface import Condition, Interface, State
from eecompile.runtime.engines.fake import FakeEngine
from eecompile.serve import Limits
from tests.compare.chromium import Browser, chromium
from tests.serve.test_server import pictures, served

READY = "document.documentElement.dataset.ready"
DONE = "!document.getElementById('go').disabled"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def garments(small_sets: dict[str, Path]) -> Iterator[Any]:
    with Sampler.open(small_sets["per_exit"]) as sampler, served(sampler) as client:
        yield client, sampler


def by_embedding(depth: int, x: Any, t: Any, given: Any) -> Any:
    made = pictures(depth, x, t, {"label": given["strength"]})
    return made + given["text"].mean((1, 2))[:, None] / 10


@pytest.fixture(scope="module")
def embedded() -> Iterator[Any]:
    """Samples that are no pictures, of an array that must be given."""
    interface = Interface(
        name="<b>embedded</b>",
        exits=(3, 12),
        state=State(shape=(16,)),
        conditions={
            "text": Condition(dtype="float32", shape=(2, 3)),
            "strength": Condition(dtype="float32", range=(0, 9), default=1),
        },
    )
    sampler = Sampler(FakeEngine((3, 12), by_embedding, 16), interface)
    with served(sampler, limits=Limits(n=8, steps=2000)) as client:
        yield client, sampler


def opened(browser: Browser, client: Any, **options: Any) -> None:
    browser.width(options.pop("width", 1200))
    browser.theme(dark=options.pop("dark", False))
    browser.visit(f"{client.base_url}/")
    assert browser.wait(READY) == "yes", browser.complaints()


def fill(browser: Browser, **values: object) -> None:
    script = "document.getElementById(arguments[0]).value = arguments[1]"
    for name, value in values.items():
        browser.run(script, name.replace("_", "-"), str(value))


def press(browser: Browser, name: str) -> None:
    browser.run("document.getElementById(arguments[0]).click()", name)


def sampled(browser: Browser, **values: object) -> Any:
    """The array that the page offers, once it has been sampled with these values."""
    fill(browser, **values)
    press(browser, "go")
    browser.wait(DONE, 60)
    address = browser.run("return document.getElementById('arrays').href")
    return np.load(io.BytesIO(base64.b64decode(address.partition(",")[2])))["samples"]


def values(browser: Browser, selector: str, name: str) -> list[str]:
    """An attribute of all elements that a selector finds."""
    script = "return [...document.querySelectorAll(arguments[0])].map((_) => _[arguments[1]])"
    return browser.run(script, selector, name)


def text(browser: Browser, name: str) -> str:
    return browser.run("return document.getElementById(arguments[0]).innerText", name)


def test_it_loads_nothing_from_elsewhere_and_does_not_complain(
    browser: Browser, garments: Any
) -> None:
    client, sampler = garments
    opened(browser, client)
    url = str(client.base_url)
    assert browser.requests() == [f"{url}/", f"{url}/network"]
    assert browser.complaints() == []
    assert text(browser, "name") == sampler.interface.name
    words = sampler.interface.conditions["label"].names
    assert text(browser, "condition-label").splitlines() == ["all in turn", *words]
    names = browser.run(
        "return [...document.querySelectorAll('#schedules option')].map(_=>_.value)"
    )
    assert names == list(sampler.interface.schedules)


def test_a_picture_is_sampled_and_told_by_choice(browser: Browser, garments: Any) -> None:
    client, sampler = garments
    opened(browser, client)
    made = sampled(browser, condition_label=9, n=3, seed=5, steps=8, schedule="4,again,1,4")
    from eecompile.programs.schedule import ExitSchedule

    schedule = ExitSchedule.parse("4,again,1,4")
    expected = sampler.sample(3, seed=5, steps=8, schedule=schedule, label=9)
    np.testing.assert_allclose(made, expected, atol=2e-5)
    size = browser.wait("document.getElementById('picture').naturalWidth")
    assert size == 2 * 28
    rows = [row.split("\t") for row in values(browser, "#times tbody tr", "innerText")]
    program = sampler.program(None, 8, schedule)
    counted: dict[str, int] = {}
    for step in program.steps:
        counted[step.chosen.text] = counted.get(step.chosen.text, 0) + 1
    assert {choice: int(steps) for choice, steps, _ in rows} == counted
    assert all(float(ms) > 0 for choice, _, ms in rows if choice != "again")
    assert "3 samples in" in text(browser, "status")
    assert text(browser, "error") == ""
    sent = browser.run("return document.querySelector('#request pre').textContent")
    assert '"conditions":{"label":9}' in sent
    assert browser.complaints() == []


def test_what_is_refused_is_told_in_its_sentence(browser: Browser, garments: Any) -> None:
    client, _ = garments
    opened(browser, client)
    fill(browser, schedule="fastest")
    press(browser, "go")
    browser.wait(DONE)
    assert "found exit schedule 'fastest'" in text(browser, "error")
    fill(browser, schedule="", steps=4)
    press(browser, "go")
    browser.wait(DONE)
    assert text(browser, "error") == ""


def test_arrays_are_given_as_json_and_as_files(
    browser: Browser, embedded: Any, tmp_path: Path
) -> None:
    client, sampler = embedded
    opened(browser, client)
    assert text(browser, "name") == "<b>embedded</b>"
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    quick: dict[str, Any] = {"steps": 5, "schedule": "12,3", "solver": "ddim"}
    made = sampled(browser, condition_text=array.tolist(), n=2, **quick)
    schedule = [12, 3]
    expected = sampler.sample(2, text=array, steps=5, schedule=schedule, solver="ddim")
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)
    assert "they are no pictures" in text(browser, "status")
    for index, given in enumerate((array, array.astype(">f4"), np.stack([array, 2 * array]))):
        path = tmp_path / f"{index}.npy"
        np.save(path, given)
        browser.driver.find_element("id", "file-text").send_keys(str(path))
        if index == 1:
            press(browser, "go")
            browser.wait(DONE)
            assert "convert it with NumPy" in text(browser, "error")
            continue
        made = sampled(browser)
        expected = sampler.sample(2, text=given, steps=5, schedule=schedule, solver="ddim")
        np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-5)


def test_stopping_gives_the_rows_back(browser: Browser, embedded: Any) -> None:
    client, _ = embedded
    opened(browser, client)
    fill(browser, condition_text="[[0,0,0],[0,0,0]]", steps=1000, schedule=12, solver="ddim")
    press(browser, "go")
    browser.wait("!document.getElementById('progress').hidden")
    press(browser, "stop")
    browser.wait(DONE)
    assert text(browser, "status") == "stopped"
    browser.driver.set_script_timeout(20)
    for _ in range(200):
        if client.get("/ready").json()["active"] == 0:
            return
    raise AssertionError("it goes on")


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_the_screen(browser: Browser, garments: Any, width: int, dark: bool) -> None:
    client, _ = garments
    opened(browser, client, width=width, dark=dark)
    sampled(browser, n=9, steps=4, schedule="4,1")
    over = browser.run("return document.documentElement.scrollWidth - window.innerWidth")
    assert over <= 0
