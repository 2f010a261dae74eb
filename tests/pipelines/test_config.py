"""Settings are read strictly, and what is refused is refused in a sentence."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from pipelines import config
from pipelines.config import from_mapping, overrides, read_toml, recipe_names, recipe_path
from vae_anomaly.exceptions import ConfigError


@dataclass(frozen=True)
class Inner:
    latent_size: int = 8
    rate: float = 0.001
    kind: Literal["mlp", "conv"] = "mlp"
    sizes: tuple[int, ...] = (64, 32)
    shape: tuple[int, int] | None = None
    limit: int | None = None
    labels: tuple[str | int | bool, ...] = ()
    mask: bool = True


@dataclass(frozen=True)
class Outer:
    name: str
    model: Inner = Inner()
    note: str | None = None


def test_every_kind_of_value_is_read() -> None:
    read = from_mapping(
        Outer,
        {
            "name": "a",
            "model": {
                "latent_size": 2,
                "rate": 1,
                "kind": "conv",
                "sizes": [4, 5, 6],
                "shape": [28, 30],
                "limit": 10,
                "labels": ["x", 1, True],
                "mask": False,
            },
        },
    )
    assert read == Outer("a", Inner(2, 1.0, "conv", (4, 5, 6), (28, 30), 10, ("x", 1, True), False))
    assert type(read.model.rate) is float
    assert [type(label) for label in read.model.labels] == [str, int, bool]


def test_defaults_and_none() -> None:
    read = from_mapping(Outer, {"name": "a", "model": {"limit": None, "shape": None}, "note": None})
    assert read == Outer("a")


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"nam": "a"}, "unknown key 'nam' at the top level; did you mean 'name'?"),
        ({"model": {"latent_sise": 2}}, "unknown key 'latent_sise' in [model]; did you mean 'latent_size'?"),
        ({"colour": 1}, "unknown key 'colour' at the top level; known: name, model, note"),
        ({"model": {"latent_size": "two"}}, "model.latent_size is 'two'; expected a whole number"),
        ({"model": {"latent_size": 2.0}}, "model.latent_size is 2.0; expected a whole number"),
        ({"model": {"latent_size": True}}, "model.latent_size is True; expected a whole number"),
        ({"model": {"rate": True}}, "model.rate is True; expected a number"),
        ({"model": {"rate": float("nan")}}, "model.rate is nan; expected a number"),
        ({"model": {"mask": 1}}, "model.mask is 1; expected true or false"),
        ({"model": {"mask": None}}, "model.mask is None; expected true or false"),
        ({"model": {"kind": "mpl"}}, "model.kind is 'mpl'; did you mean 'mlp'?"),
        ({"model": {"kind": 3}}, "model.kind is 3; known: mlp, conv"),
        ({"model": {"sizes": 3}}, "model.sizes is 3; expected a list, each a whole number"),
        ({"model": {"sizes": [3, "x"]}}, "model.sizes[1] is 'x'; expected a whole number"),
        ({"model": {"shape": [3]}}, "model.shape is [3]; expected a list of 2, each a whole number"),
        ({"model": {"shape": [3, "x"]}}, "model.shape[1] is 'x'; expected a whole number"),
        ({"model": {"shape": 3}}, "model.shape is 3; expected a list of 2, each a whole number or none"),
        ({"model": {"limit": "x"}}, "model.limit is 'x'; expected a whole number or none"),
        ({"model": {"labels": [1.5]}},
         "model.labels[0] is 1.5; expected text or a whole number or true or false"),
        ({"model": 3}, "model is 3; expected a table"),
        ({"note": 3}, "note is 3; expected text or none"),
    ],
)  # fmt: skip
def test_slips_are_named(mapping: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        from_mapping(Outer, {"name": "a", **mapping})


def test_a_required_key_is_missed() -> None:
    with pytest.raises(ConfigError, match=r"^missing key 'name' at the top level; add it$"):
        from_mapping(Outer, {"model": {}})


def test_an_inner_table_knows_where_it_stands() -> None:
    with pytest.raises(ConfigError, match=r"^unknown key 'x' in \[recipe.model\]; known: "):
        from_mapping(Outer, {"name": "a", "model": {"x": 1}}, where="recipe")


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("model.limit=3", 3),
        ("model.limit = 3 ", 3),
        ("model.limit=3.5", 3.5),
        ("model.limit=true", True),
        ("model.limit=[1, 2]", [1, 2]),
        ("model.limit=digits", "digits"),
        ('model.limit="3"', "3"),
        ("model.limit=a=b", "a=b"),
        ("model.limit=", ""),
        ("model.limit=none", None),
        ('model.limit="none"', "none"),
        ("model.limit=1979-05-27", "1979-05-27"),
        ("model.limit=3\nother=4", "3\nother=4"),
    ],
)
def test_overrides_read_values_as_toml_and_the_rest_as_text(assignment: str, expected: object) -> None:
    before = {"model": {"limit": 1, "mask": False}}
    after = overrides(before, [assignment])
    assert after == {"model": {"limit": expected, "mask": False}}
    assert type(after["model"]["limit"]) is type(expected)
    assert before == {"model": {"limit": 1, "mask": False}}


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("model.limit", "cannot read the setting 'model.limit'; write it as table.key=value"),
        ("model..limit=3", "cannot read the setting 'model..limit=3'; write it as table.key=value"),
        ("name.limit=3", "'name' in 'name.limit=3' is a value, not a table"),
    ],
)
def test_unreadable_overrides_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        overrides({"name": "a"}, [assignment])


def test_toml_files(tmp_path: Path) -> None:
    good, bad, latin = tmp_path / "good.toml", tmp_path / "bad.toml", tmp_path / "latin.toml"
    good.write_text('name = "a"\n[model]\nsizes = [1, 2]\n')
    bad.write_text("name = \n")
    latin.write_bytes(b'name = "\xe9"\n')
    assert from_mapping(Outer, read_toml(good)) == Outer("a", Inner(sizes=(1, 2)))
    with pytest.raises(
        ConfigError, match=rf"^{re.escape(str(bad))} is no valid TOML: Invalid value \(at line 1"
    ):
        read_toml(bad)
    with pytest.raises(ConfigError, match="is no valid TOML: 'utf-8' codec"):
        read_toml(latin)
    with pytest.raises(ConfigError, match=r"absent.toml: No such file or directory$"):
        read_toml(tmp_path / "absent.toml")


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("mnist-mlp", "digits"):
        (tmp_path / f"{name}.toml").write_text("")
    monkeypatch.setattr(config, "_recipe_folder", lambda: tmp_path)
    assert recipe_names() == ("digits", "mnist-mlp")
    assert recipe_path("mnist-mlp") == tmp_path / "mnist-mlp.toml"
    with pytest.raises(ConfigError, match=r"^unknown recipe 'mnist-mpl'; did you mean 'mnist-mlp'\?$"):
        recipe_path("mnist-mpl")
    with pytest.raises(ConfigError, match=r"^unknown recipe '\.\./digits'; did you mean 'digits'\?$"):
        recipe_path("../digits")


def test_recipes_lie_in_the_package() -> None:
    assert config._recipe_folder() == Path(config.__file__).parent / "recipes"
