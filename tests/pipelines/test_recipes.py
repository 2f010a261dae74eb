"""Recipes say exactly what is trained."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import tiny_digits

from pipelines.config import recipe_names
from pipelines.recipe import Recipe, load_recipe
from vae_anomaly.encoding import fit_encoding
from vae_anomaly.exceptions import ConfigError
from vae_anomaly.fitting import Settings, recommended_training
from vae_anomaly.imputer_fitting import imputer_settings
from vae_anomaly.networks import ModelConfig, map_sizes
from vae_anomaly.schema import ImageSchema, infer_schema
from vae_anomaly.training import Trainer
from vae_anomaly.vae import Autoencoder, make_likelihood, make_model, parameter_count

ROWS = 12
SHAPES = {
    "default-image": (1, 28, 28),
    "default-imputer": (5,),
    "default-table": (5,),
    "digits": (1, 8, 8),
    "fashion-autoencoder": (1, 28, 28),
    "fashion-conv": (1, 28, 28),
    "mnist-mlp": (1, 28, 28),
    "mnist-mse": (1, 28, 28),
    "rgb64-autoencoder": (3, 64, 64),
    "rgb64-conv": (3, 64, 64),
    "table": (5,),
}


def named(name: str, *changes: str) -> Recipe:
    return load_recipe(name, changes, {"data": {"source": "somewhere"}})


def samples(shape: tuple[int, ...], rows: int = ROWS) -> np.ndarray:
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        return rng.normal(size=(rows, *shape))
    return rng.integers(0, 256, (rows, *shape)).astype(np.uint8)


def settings_of(recipe: Recipe, name: str, rows: int = ROWS) -> Settings:
    x = samples(SHAPES[name], rows)
    schema = infer_schema(x)
    return recipe.settings(schema, schema.read(x))


def model_of(name: str, *changes: str) -> Autoencoder:
    complete = settings_of(named(name, *changes), name)
    assert complete.model is not None
    return make_model(SHAPES[name], complete.model, torch.Generator().manual_seed(0))


def test_every_recipe_is_tested() -> None:
    assert tuple(SHAPES) == recipe_names()


@pytest.mark.parametrize("name", SHAPES)
def test_a_recipe_trains_a_step(name: str) -> None:
    recipe, x = named(name, "training.epochs=1", "training.precision=float32"), samples(SHAPES[name])
    schema = infer_schema(x)
    complete = settings_of(recipe, name)
    assert complete.training is not None
    assert complete.training.epochs == 1
    read, model = schema.read(x), model_of(name)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    encoding = fit_encoding(schema, read, make_likelihood(complete.model or ModelConfig()).output_range)
    (figures,) = Trainer(model, encoding, complete.objective, complete.training, device="cpu").fit(read, read)
    assert np.isfinite([figures["loss"], figures["val_loss"]]).all()
    assert (figures["kl"] > 0) == model.variational
    assert all((old != new).any() for old, new in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "changes", "parameters"),
    [
        # 784-400 twice mirrored: 2 * 784 * 400 + 400 + 784, two heads of 400 L + L, and L * 400 + 400.
        ("mnist-mlp", [], 652_824),
        ("mnist-mse", [], 652_824),
        ("mnist-mse", ["model.latent_size=2"], 631_188),
        ("fashion-conv", [], 100_868 + 246_273),
    ],
)
def test_the_published_number_of_parameters(name: str, changes: list[str], parameters: int) -> None:
    assert parameter_count(model_of(name, *changes)) == parameters


def test_fashion_has_the_encoder_and_decoder_of_the_notebook() -> None:
    model = model_of("fashion-conv")
    assert (parameter_count(model.encoder), parameter_count(model.decoder)) == (100_868, 246_273)
    config = named("fashion-conv").model
    assert config is not None
    assert map_sizes((1, 28, 28), config) == [(32, 32), (16, 16), (8, 8), (4, 4)]
    # The same without the second head of 2048 x 2 weights and 2 biases.
    plain = model_of("fashion-autoencoder")
    assert (parameter_count(plain.encoder), parameter_count(plain.decoder)) == (100_868 - 4_098, 246_273)


def test_the_code_of_the_colour_autoencoder_is_its_last_feature_map() -> None:
    model = model_of("rgb64-autoencoder")
    last = [module for module in model.encoder.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    seen: list[torch.Size] = []
    last.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[1:]))
    x = torch.zeros(2, 3 * 64 * 64)
    code = model.encode(x, torch.ones_like(x, dtype=torch.bool))
    assert seen == [torch.Size([512, 4, 4])]
    assert (code.mean.shape, code.log_variance) == (torch.Size([2, 512 * 4 * 4]), None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.epoch=3"], "unknown key 'epoch' in [training]; did you mean 'epochs'?"),
        (["trainin.epochs=3"], "unknown key 'trainin' at the top level; did you mean 'training'?"),
        (["model.hiden=[8]"], "unknown key 'hiden' in [model]; did you mean 'hidden'?"),
        (["data.novl=[8]"], "unknown key 'novl' in [data]; did you mean 'novel'?"),
        (["training.epochs=many"], "training.epochs is 'many'; expected a whole number"),
        (["training.epochs=0"], "epochs must be at least 1, got 0"),
        (["training=3"], "training is 3; expected a table, such as training.key=value"),
        (["data=3"], "data is 3; expected a table"),
    ],
)
@pytest.mark.parametrize("name", ["digits"])
def test_a_slip_is_named_with_its_near_miss(name: str, changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(name, changes)
    assert str(caught.value) == said


def test_an_unknown_recipe_and_one_without_data() -> None:
    with pytest.raises(ConfigError, match=r"^unknown recipe 'digts'; did you mean 'digits'\?$"):
        load_recipe("digts")
    with pytest.raises(ConfigError, match=r"^recipe 'table' names no data; give --data FILE, or a folder of"):
        load_recipe("table")


@pytest.mark.parametrize("name", ["a/b", "a:b", "", "x.y", "../up", "me@home"])
def test_a_name_that_no_registry_takes_is_refused_before_training(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^a model cannot be called '.*'; leave out slashes, quotes and"):
        load_recipe("digits", (), {"": {"name": name}})


def test_a_change_leaves_the_other_recommended_settings_alone() -> None:
    recipe = load_recipe("digits", ["training.epochs=3", "model.latent_size=5"])
    complete = settings_of(recipe, "digits", 1000)
    recommended = recommended_training(ImageSchema(1, 8, 8), 1000)
    assert recommended.random_mask == 0.5
    assert complete.training == replace(recommended, epochs=3)
    assert complete.model is not None
    assert (complete.model.network, complete.model.latent_size) == ("conv", 5)


def test_an_imputer_has_the_settings_of_the_estimator_but_for_the_changes() -> None:
    x = samples((5,), 200)
    schema = infer_schema(x)
    expected = imputer_settings(schema, schema.read(x))
    assert settings_of(named("default-imputer"), "default-imputer", 200) == expected
    changed = settings_of(named("default-imputer", "objective.draws=3"), "default-imputer", 200)
    assert changed == replace(expected, objective=replace(expected.objective, draws=3))
    assert expected.objective.bound == "iw"


def test_trimming_shortens_a_recommended_training() -> None:
    whole, trimmed = (
        settings_of(named("default-table", *changes), "default-table", 200).training
        for changes in ((), ("objective.trim=0.1",))
    )
    assert whole is not None
    assert trimmed is not None
    assert trimmed.epochs * 10 == whole.epochs


def test_a_section_of_a_file_stands_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('[data]\nsource = "digits"\n[training]\nepochs = 7\n')
    training = settings_of(load_recipe(str(path), ["training.patience=2"]), "digits").training
    assert training is not None
    assert (training.epochs, training.patience, training.random_mask) == (7, 2, 0.0)


def test_options_win_over_assignments() -> None:
    recipe = load_recipe("digits", ["seed=3", "data.limit=50"], {"": {"seed": 4}, "data": {"limit": None}})
    assert (recipe.name, recipe.seed, recipe.data.limit) == ("digits", 4, 50)


def test_tiny_digits_are_tiny() -> None:
    complete = settings_of(tiny_digits(), "digits")
    assert complete.model is not None
    assert parameter_count(make_model((1, 8, 8), complete.model, torch.Generator())) < 2000
