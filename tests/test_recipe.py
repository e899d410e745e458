from __future__ import annotations

from inspect import signature
from pathlib import Path

import pytest

from eecompile.errors import RecipeError, ScheduleError
from eecompile.recipe import load_recipe
from eecompile.runtime.sampler import Sampler
from eecompile.store.target import DEFAULT_TARGET, load_target
from tests.conftest import RECIPE, ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "export").glob("*.toml")), ids=lambda p: p.stem)
def test_every_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert recipe.sampling.schedule in recipe.exit_schedules()


@pytest.mark.parametrize("path", sorted((ROOT / "engines").glob("*.toml")), ids=lambda p: p.stem)
def test_every_target_loads(path: Path) -> None:
    assert load_target(path).name == path.stem


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = RECIPE.read_text()
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new))
    return path


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("checkpoint =", "chekpoint =", ["'network.chekpoint'", "did you mean 'checkpoint'?"]),
        ("[sampling]", "[samplin]", ["'samplin'", "did you mean 'sampling'?"]),
        ("[conditions.label]", "[conditions.label]\ndefalt = 3", ["'conditions.label.defalt'"]),
        ("exits = [3, 6, 9, 12]", "exits = [3, 9, 6, 12]", ["[3, 9, 6, 12]", "ascending"]),
        ("exits = [3, 6, 9, 12]", "exits = []", ["[]", "ascending"]),
        ("exits = [3, 6, 9, 12]", "exits = [0, 12]", ["[0, 12]", "from 1 to 10000"]),
        ("exits = [3, 6, 9, 12]", "exits = [3, 1000000000]", ["[3, 1000000000]"]),
        ("exits = [3, 6, 9, 12]", 'exits = "all"', ["network.exits", "array"]),
        ("timesteps = 1000", "timesteps = 0", ["process.timesteps = 0", "1 to 100,000"]),
        ('betas = "cosine"', 'betas = "cubic"', ["process.betas", "cubic"]),
        ('dtype = "int64"', 'dtype = "float32"', ["cycle", "int64"]),
        ('name = "fashion-dit"', 'name = "../up"', ["name"]),
        ("[network]", "[network", ["not TOML"]),
        ('solver = "ddim"', 'solver = "eulers"', ["'eulers'", "ddim"]),
        ("steps = 50", "steps = 5000", ["5000 steps", "1 to 1000"]),
        ('solver = "ddim"', 'solver = "flow-heun"', ["flow-heun", "family diffusion"]),
        ('solver = "ddim"', 'solver = "ddim"\nguidance_interval = [9, 2]', ["guidance_interval"]),
        ("range = [0, 9]", "range = [0, 8]", ["10 names"]),
        ("range = [-1, 1]", "range = [1, -1]", ["state.range"]),
        ("range = [-1, 1]", "resizable = {axes = [1], min = 4, max = 30, multiple = 4}", ["30"]),
        ("range = [-1, 1]", "resizable = {axes = [1], min = 4, max = 20}", ["[1, 28, 28]", "20"]),
        ("range = [-1, 1]", "resizable = {axes = [5], min = 4, max = 40}", ["axes [5]"]),
        ("factory =", "files = ['a.onnx']\nfactory =", ["factory, checkpoint", "files"]),
        ("checkpoint =", "# checkpoint =", ["factory and checkpoint, or files"]),
        ("factory =", "costs = [1, 2]\nfactory =", ["2 network.costs for 4 exits"]),
        ("factory =", "costs = [1, 2, 2, 3]\nfactory =", ["ascend"]),
        ("guidance = 1.0", "guided_channels = 0", ["sampling.guided_channels"]),
        ("guidance = 1.0", "guided_channels = 2", ["guided_channels = 2", "[1, 28, 28]"]),
        ("guidance = 1.0", "guidance = nan", ["sampling.guidance = nan", "finite"]),
        ("range = [-1, 1]", "range = [-inf, inf]", ["state.range[0] = -inf", "finite"]),
        ("range = [0, 9]", "range = [0, inf]", ["conditions.label.range[1] = inf"]),
        ("range = [0, 9]", "range = [0.5, 9]", ["range 0.5", "int64"]),
        ("null = 10", "null = 2.7", ["null 2.7", "int64"]),
        ("null = 10", "null = 1e300", ["null 1e+300", "int64"]),
        ("shape = [1, 28, 28]", "shape = [1, 100000, 100000]", ["2147483647 numbers"]),
        ("timesteps = 1000", "timesteps = 1000000", ["process.timesteps"]),
        ('betas = "cosine"', "beta_start = 1e-20", ["at the first timestep"]),
        ('betas = "cosine"', "beta_end = 0.9", ["at the last"]),
        ('betas = "cosine"', 'betas = "cubic"', ["['continuous', 'cosine', 'linear', "]),
        ("[schedules]", "[schedules]\nfull = [3]", ["'full'", "another name"]),
        ("[schedules]", '[schedules]\n"[b]" = [3]', ["schedules"]),
        ("factory =", "arguments = {y = 'a'}\nfactory =", ["network.arguments", "'label'"]),
        ("factory =", "arguments = {x = 'a', t = 'a'}\nfactory =", ["distinct"]),
        *(
            (
                "[conditions.label]",
                f'[conditions.{name}]\ndtype = "int64"\n[conditions.label]',
                [name],
            )
            for name in (*signature(Sampler.steps).parameters, "x", "t", "prediction_003")
            if name != "conditions"
        ),
    ],
)
def test_a_malformed_recipe_says_what_is_wrong(
    tmp_path: Path, old: str, new: str, words: list[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(changed(tmp_path, old, new))
    for word in words:
        assert word in str(caught.value)


def test_a_schedule_with_a_depth_that_is_no_exit_is_refused(tmp_path: Path) -> None:
    path = changed(tmp_path, "[schedules]", "[schedules]\nodd = [12, 5]")
    with pytest.raises(
        ScheduleError, match=r"depth 5 .* expected one of the exits \[3, 6, 9, 12\]"
    ):
        load_recipe(path)


def test_a_schedule_may_have_thresholds(tmp_path: Path) -> None:
    line = "[schedules]\nodd = { depths = [12, 3], thresholds = [0.25] }"
    schedule = load_recipe(changed(tmp_path, "[schedules]", line)).exit_schedules()["odd"]
    assert [schedule.choice_at(t, 1000).blocks for t in (249, 250)] == [12, 3]


def test_a_default_schedule_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    head = RECIPE.read_text().partition("[sampling]")[0]
    path.write_text(head + '[sampling]\nschedule = "none"\n')
    with pytest.raises(RecipeError, match="'none'"):
        load_recipe(path)


def test_a_missing_file_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no readable file"):
        load_recipe(tmp_path / "none.toml")


def test_a_target_checks_its_batch_sizes(tmp_path: Path) -> None:
    path = tmp_path / "target.toml"
    path.write_text('name = "x"\nbackend = "onnxruntime"\n[batch]\nmin = 8\nopt = 4\n')
    with pytest.raises(RecipeError, match="min <= opt <= max"):
        load_target(path)
    path.write_text('name = "x"\nbackend = "onnxruntme"\n')
    with pytest.raises(RecipeError, match="onnxruntme"):
        load_target(path)


def test_other_exits_keep_the_schedules_that_fit(tmp_path: Path) -> None:
    costs = changed(tmp_path, "factory =", "costs = [1, 2, 3, 4]\nfactory =")
    recipe = load_recipe(costs, exits=(3, 6, 12), checkpoint=Path("other.pt"))
    assert recipe.network.exits == (3, 6, 12)
    assert recipe.network.costs == (1, 2, 4)
    assert recipe.network.checkpoint == str(Path("other.pt").absolute())
    assert list(recipe.schedules) == ["half"], "which is of full depth and forecasts"
    assert recipe.sampling.schedule == "half"
    fewer = load_recipe(costs, exits=(3, 6))
    assert list(fewer.exit_schedules()) == ["full"]
    assert fewer.sampling.schedule == "full"
    every = load_recipe(RECIPE, exits=(3, 6, 9, 12))
    assert list(every.schedules) == ["half", "ase", "balanced", "fast"]
    assert load_recipe(costs, exits=(5, 12)).network.costs == ()


def test_the_share_of_a_schedule_follows_the_costs(tmp_path: Path) -> None:
    from eecompile.compiler.export import interface_from_recipe

    path = changed(tmp_path, "factory =", "costs = [1, 2, 4, 10]\nfactory =")
    interface = interface_from_recipe(load_recipe(path))
    fast = interface.schedules["fast"]  # 12 12 9 9 6 6 3 3 3 3
    assert interface.share(fast) == pytest.approx((2 * 10 + 2 * 4 + 2 * 2 + 4 * 1) / 100)
    plain = interface_from_recipe(load_recipe(RECIPE))
    assert plain.share(fast) == pytest.approx((2 * 12 + 2 * 9 + 2 * 6 + 4 * 3) / 120)


def test_the_default_target_is_engines_cpu() -> None:
    assert load_target(ROOT / "engines" / "cpu.toml") == DEFAULT_TARGET


def test_a_missing_target_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"such as engines/cpu\.toml"):
        load_target(tmp_path / "none.toml")


@pytest.mark.parametrize("bound", ["nan", "inf", "-1.0"])
def test_a_tolerance_that_lets_everything_pass_is_refused(tmp_path: Path, bound: str) -> None:
    path = changed(tmp_path, "[sampling]", f"[tolerance]\nabsolute = {bound}\n[sampling]")
    with pytest.raises(RecipeError, match="finite number"):
        load_recipe(path)
