"""Raw values go to model space and back, with all their digits and nobody else's."""

import math
import re
from collections.abc import Callable
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pytest
import torch

from vae_anomaly.encoding import TABLE_LIMIT, Encoded, ImageEncoding, TableEncoding, fit_encoding
from vae_anomaly.exceptions import DataError
from vae_anomaly.schema import Column, ImageSchema, Samples, TableSchema

FloatTable = npt.NDArray[np.float64]
GREY = ImageSchema(1, 8, 9)
FLOAT = ImageSchema(2, 8, 9, "float32", -5.0, 15.0)


def table_schema(width: int) -> TableSchema:
    return TableSchema(tuple(Column(f"c{i}") for i in range(width)))


def samples(values: FloatTable, observed: npt.NDArray[np.bool_] | None = None) -> Samples:
    present = ~np.isnan(values)
    return Samples(values, present if observed is None else present & observed)


def fitted(values: FloatTable, observed: npt.NDArray[np.bool_] | None = None) -> TableEncoding:
    return TableEncoding.fit(samples(values, observed), table_schema(values.shape[1]))


def encode(encoding: TableEncoding, values: FloatTable) -> Encoded:
    x = torch.from_numpy(values)
    encoded: Encoded = encoding(x, ~torch.isnan(x))
    return encoded


def column(*values: float) -> FloatTable:
    return np.array(values, dtype=np.float64)[:, None]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 1.0)])
def test_all_bytes_go_there_and_back(low: float, high: float) -> None:
    pixels = torch.arange(0, 256).to(torch.uint8).repeat(9)[: 32 * 72].reshape(32, 1, 8, 9)
    encoding = ImageEncoding(GREY, low, high)
    x, observed, clipped = encoding(pixels, torch.ones_like(pixels, dtype=torch.bool))
    assert x.shape == observed.shape == (32, 72)
    expected = low + pixels.flatten(1).double() / 255 * (high - low)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1e-6)
    back = encoding.decode(x)
    assert back.dtype == torch.float32
    assert torch.equal(back.round().to(torch.uint8), pixels)
    assert torch.equal(clipped, torch.zeros(32, dtype=torch.int64))


def test_hidden_pixels_are_zero_whatever_they_hold() -> None:
    encoding = ImageEncoding(GREY, -1.0, 1.0)
    observed = torch.rand(4, 1, 8, 9, generator=torch.Generator().manual_seed(0)) < 0.5
    for fill in (0, 255):
        pixels = torch.where(observed, 40, fill).to(torch.uint8)
        x, seen, _ = encoding(pixels, observed)
        assert torch.equal(seen, observed.flatten(1))
        assert torch.equal(x == 0, ~seen)


def test_float_pixels_outside_the_range_are_clipped_and_counted() -> None:
    pixels = torch.full((3, 2, 8, 9), 5.0)
    pixels[0, 0, 0, :4] = torch.tensor([-5.0, 15.0, -6.0, 1e30])
    pixels[1, 1, 0, :3] = torch.nan
    pixels[2] = -1e30
    observed = torch.ones_like(pixels, dtype=torch.bool)
    observed[2, :, 1:] = False
    x, seen, clipped = ImageEncoding(FLOAT)(pixels, observed)
    assert clipped.tolist() == [2, 0, 18]
    assert x[0, :5].tolist() == [0.0, 1.0, 0.0, 1.0, 0.5]
    assert seen[1].sum() == 141
    assert x.isfinite().all()
    assert x.abs().max() <= 1


def test_decoded_images_stay_in_the_raw_range() -> None:
    encoding = ImageEncoding(FLOAT)
    y = torch.tensor([-3.0, 0.0, 0.25, 1.0, 7.0]).repeat(144)[:144].expand(2, 3, 144)
    decoded = encoding.decode(y)
    assert decoded.shape == (2, 3, 2, 8, 9)
    assert decoded.flatten()[:5].tolist() == [-5.0, -5.0, 0.0, 15.0, 15.0]
    assert encoding.decode_scale(torch.full((1, 144), 0.5), torch.zeros(1, 144)).unique().tolist() == [10.0]


def test_a_tanh_range_halves_the_scale() -> None:
    encoding = ImageEncoding(GREY, -1.0, 1.0)
    torch.testing.assert_close(
        encoding.decode_scale(torch.ones(1, 72), torch.zeros(1, 72)), torch.full((1, 1, 8, 9), 127.5)
    )


def test_columns_are_standardised_by_their_observed_cells() -> None:
    values = np.array([[1.0, 10.0], [3.0, np.nan], [5.0, 30.0], [99.0, 20.0]])
    observed = np.ones_like(values, dtype=np.bool_)
    observed[3] = False
    encoding = fitted(values, observed)
    assert encoding.mean.tolist() == [3.0, 20.0]
    # Divisor n: deviations sqrt(8/3) and 10.
    torch.testing.assert_close(encoding.scale, torch.tensor([np.sqrt(8 / 3), 10.0], dtype=torch.float64))
    x, seen, clipped = encode(encoding, values)
    assert x.dtype == torch.float32
    expected = torch.tensor([[-1.2247449, -1], [0, 0], [1.2247449, 1], [58.787754, 0]])
    torch.testing.assert_close(x, expected)
    assert seen.tolist() == [[True, True], [True, False], [True, True], [True, True]]
    assert clipped.tolist() == [0, 0, 0, 0]
    back = encoding.decode(x)
    assert back.dtype == torch.float64
    torch.testing.assert_close(back[:, 0], torch.from_numpy(values[:, 0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        encoding.decode_scale(torch.ones(1, 2), torch.zeros(1, 2)), encoding.scale[None]
    )


def test_nan_is_missing_whatever_the_mask_says() -> None:
    x = torch.tensor([[1.0, math.nan], [math.nan, math.nan]], dtype=torch.float64)
    encoding = TableEncoding(torch.tensor([3.0, 5.0]), torch.tensor([2.0, 1.0]))
    y, observed, clipped = encoding(x, torch.ones_like(x, dtype=torch.bool))
    assert y.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    assert observed.tolist() == [[True, False], [False, False]]
    assert clipped.tolist() == [0, 0]


def test_the_statistics_are_numpys() -> None:
    values = np.random.default_rng(0).normal(3, 50, size=(1000, 7))
    encoding = fitted(values)
    np.testing.assert_allclose(encoding.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(encoding.scale, values.std(axis=0), rtol=1e-12)


@pytest.mark.parametrize(("offset", "spread"), [(1e9, 1.0), (1e9, 1e-3), (1.7e18, 1e6), (-1e12, 0.5)])
def test_a_large_offset_keeps_the_small_digits(offset: float, spread: float) -> None:
    rng = np.random.default_rng(0)
    values = offset + spread * rng.normal(size=(500, 1))
    held = values - offset  # exact: both are multiples of the same last bit
    encoding = fitted(values)
    assert encoding.scale.item() == pytest.approx(held.std(), rel=1e-9)
    x, _, _ = encode(encoding, values)
    expected = (held - held.mean()) / held.std()
    np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=3e-4)
    back = encoding.decode(x).numpy()
    np.testing.assert_allclose(back, values, rtol=0, atol=spread * 1e-6 + 2 * np.spacing(abs(offset)))


def test_seconds_of_a_timestamp_survive() -> None:
    start = datetime(2026, 11, 20).timestamp()
    values = start + 60.0 * np.arange(1440.0)[:, None]
    encoding = fitted(values)
    back = encoding.decode(encode(encoding, values)[0]).numpy()
    assert np.abs(back - values).max() < 0.01


def test_huge_and_tiny_columns_have_finite_statistics() -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(100, 1))
    values = np.hstack([1e300 * unit, 1e-300 * unit, 5e-324 * np.round(100 * unit), 8e307 * np.sign(unit)])
    encoding = fitted(values)
    assert encoding.mean.isfinite().all()
    assert encoding.scale.isfinite().all()
    x, _, clipped = encode(encoding, values)
    reference = (unit - unit.mean()) / unit.std()
    np.testing.assert_allclose(x[:, :2].numpy(), np.hstack([reference, reference]), atol=1e-5)
    assert x.abs().max() < 10
    assert clipped.sum() == 0


@pytest.mark.parametrize("cell", [1e300, -1.7e308, 1e5])
def test_a_far_cell_is_clipped_and_counted(cell: float) -> None:
    encoding = fitted(np.random.default_rng(0).normal(size=(50, 2)))
    x, observed, clipped = encode(encoding, np.array([[0.0, cell], [cell, cell], [np.nan, 0.0]]))
    assert clipped.tolist() == [1, 2, 0]
    assert x[0, 1] == np.sign(cell) * TABLE_LIMIT
    assert x[2, 0] == 0
    assert not observed[2, 0]


def test_hidden_cells_have_no_say() -> None:
    rng = np.random.default_rng(0)
    values, observed = rng.normal(size=(60, 3)), rng.random((60, 3)) < 0.6
    others = [np.where(observed, values, fill) for fill in (np.nan, 1e300, -7.0)]
    results = []
    for held in others:
        encoding = TableEncoding.fit(Samples(held, observed), table_schema(3))
        results.append(
            (encoding.mean, encoding.scale, *encoding(torch.from_numpy(held), torch.from_numpy(observed)))
        )
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))
    assert (results[0][2][~torch.from_numpy(observed)] == 0).all()


def test_a_constant_column_is_decoded_as_it_is() -> None:
    values = np.random.default_rng(0).normal(size=(1000, 5))
    values[:, 1], values[:, 3], values[:, 4] = 0.1, 1e9 + 0.1, 0.0
    values[7, 3] = np.nan
    encoding = fitted(values)
    assert encoding.scale[[1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    assert encoding.mean[[1, 3, 4]].tolist() == [0.1, 1e9 + 0.1, 0.0]
    x, _, clipped = encode(encoding, np.array([[0.0, 0.1, 0.0, 1e9 + 2.1, 0.5]]))
    assert x[0, [1, 3, 4]].tolist() == [0.0, 2.0, 0.5]
    assert encoding.decode(x)[0, [1, 3, 4]].tolist() == [0.1, 1e9 + 0.1, 0.0]
    assert encoding.decode_scale(torch.ones(1, 5), x)[0, [1, 3, 4]].tolist() == [0.0, 0.0, 0.0]
    assert clipped.tolist() == [0]


def test_robust_scaling_is_median_and_quartiles_of_the_observed_cells() -> None:
    values = np.random.default_rng(0).standard_normal((4001, 3)) * [1.0, 20.0, 1.0] + [0.0, 5.0, 0.0]
    values[:40, 0], values[:, 2] = 1e6, 0.0
    values[:5, 2] = [1.0, 2.0, 3.0, 4.0, 5.0]
    observed = np.ones(values.shape, dtype=np.bool_)
    observed[100:200, 1] = False
    encoding = TableEncoding.fit(Samples(values, observed), table_schema(3), "robust")
    low, middle, high = np.quantile(values[observed[:, 1], 1], [0.25, 0.5, 0.75])
    assert encoding.mean[1].item() == pytest.approx(middle)
    assert encoding.scale[1].item() == pytest.approx((high - low) / 1.3489795)
    # One cell in a hundred is a million, and the others keep their scale.
    assert encoding.scale[0].item() == pytest.approx(1, rel=0.1)
    # The quartiles coincide: the standard deviation stays.
    assert encoding.scale[2].item() == pytest.approx(values[:, 2].std())


@pytest.mark.parametrize("wild", [999.0, -1e6, 1e12, 1e300])
def test_a_few_wild_cells_do_not_set_the_scale(wild: float) -> None:
    values = np.random.default_rng(0).standard_normal((500, 3))
    clean = fitted(values)
    values[[3, 40], [0, 1]] = wild
    encoding = fitted(values)
    assert encoding.wild == (0, 1)
    assert encoding.scale.numpy() == pytest.approx(clean.scale.numpy(), rel=0.15)
    assert encoding.scale[2] == clean.scale[2]


@pytest.mark.parametrize(
    ("column_of", "why"),
    [
        (lambda rng: np.exp(1.5 * rng.standard_normal(2000)), "skewed: many cells make the deviation"),
        (lambda rng: rng.standard_t(2, 2000), "heavy tails: many cells make it"),
        (lambda rng: np.where(np.arange(2000) < 60, 999.0, rng.standard_normal(2000)), "no few cells"),
        (lambda rng: np.where(np.arange(2000) < 1200, 0.0, rng.standard_normal(2000)), "half is one value"),
        (lambda rng: np.where(np.arange(2000) < 1200, 1e-9, 1.0) * rng.standard_normal(2000), "nearly so"),
    ],
)
def test_columns_whose_deviation_many_cells_make_are_standardised(
    column_of: Callable[[np.random.Generator], np.ndarray], why: str
) -> None:
    values = column_of(np.random.default_rng(0))[:, None]
    encoding = fitted(values)
    assert encoding.wild == (), why
    assert encoding.scale.item() == pytest.approx(values.std())


def test_rounding_of_one_value_is_no_spread_to_scale_by() -> None:
    values = np.full((500, 1), 0.3)
    values[::2] += 5.6e-17
    values[7] = 5.0
    assert fitted(values).scale.item() == pytest.approx(values.std())


def test_last_bits_are_no_spread() -> None:
    assert fitted(column(0.1 + 0.2, 0.3, 0.3)).scale.tolist() == [0.0]


def test_varying_columns_warn_of_nothing(caplog: pytest.LogCaptureFixture) -> None:
    encoding = fitted(column(1e9, 1e9 + 1e-3, 1e9 + 2e-3))
    assert encoding.scale.item() == pytest.approx(1e-3 * np.sqrt(2 / 3), rel=1e-3)
    assert caplog.messages == []


@pytest.mark.parametrize("hide", ["nan", "mask"])
def test_a_column_without_a_value_is_refused(hide: str) -> None:
    values = np.random.default_rng(0).normal(size=(20, 3))
    observed = np.ones_like(values, dtype=np.bool_)
    if hide == "nan":
        values[:, 1] = np.nan
    else:
        observed[:, 1] = False
    message = "training column 'c1' has no value in any row; leave it out"
    with pytest.raises(DataError, match=f"^{re.escape(message)}$"):
        fitted(values, observed)


def test_fit_encoding_follows_the_schema() -> None:
    images = Samples(np.zeros((2, 1, 8, 9), np.uint8), np.ones((2, 1, 8, 9), np.bool_))
    encoding = fit_encoding(GREY, images, (-1.0, 1.0))
    assert isinstance(encoding, ImageEncoding)
    assert encoding(*map(torch.from_numpy, images)).x.unique().tolist() == [-1.0]
    table = samples(np.array([[1.0], [3.0]]))
    encoding = fit_encoding(table_schema(1), table, (0.0, 1.0))
    assert isinstance(encoding, TableEncoding)
    assert (encoding.mean.item(), encoding.scale.item()) == (2.0, 1.0)
