"""Arrays of images: shapes, ids and units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from file_samples import (
    CHUNKS,
    COLOUR,
    GREY,
    IMAGES,
    UNIT,
    ids_of,
    read,
    rejects_of,
    values_of,
)

from serving import arrays
from serving.formats import ReadOptions, open_source
from vae_anomaly.exceptions import ConfigError, DataError, SchemaError


@pytest.mark.parametrize("chunk_rows", CHUNKS)
@pytest.mark.parametrize("shape", [(6, 1, 8, 10), (6, 8, 10), (6, 80)], ids=["channels", "plain", "flat"])
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_arrays_of_images_of_any_accepted_shape(
    tmp_path: Path, chunk_rows: int | None, shape: tuple[int, ...], suffix: str
) -> None:
    path = tmp_path / f"x{suffix}"
    (np.save if suffix == ".npy" else np.savez_compressed)(path, IMAGES.reshape(shape))
    chunks = read(path, GREY, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), IMAGES)
    assert values_of(chunks).dtype == np.uint8


def test_channels_last_needs_convert(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 8, 10), dtype=np.uint8)
    np.save(tmp_path / "x.npy", images.transpose(0, 2, 3, 1))
    with pytest.raises(
        SchemaError, match=r"^x\.npy, of shape \(4, 8, 10, 3\): images have shape .* channels last"
    ):
        open_source(tmp_path / "x.npy", COLOUR)
    np.testing.assert_array_equal(values_of(read(tmp_path / "x.npy", COLOUR, convert=True)), images)


def test_ids_of_an_npz_stand_beside_its_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", X=IMAGES, name=np.array(list("fedcba")), few=np.arange(2))
    assert ids_of(read(tmp_path / "x.npz", GREY, id_column="name", chunk_rows=4)) == list("fedcba")
    with pytest.raises(SchemaError, match=r"^no array 'nome' in .*x\.npz; it holds X, name, few$"):
        open_source(tmp_path / "x.npz", GREY, ReadOptions(id_column="nome"))
    with pytest.raises(DataError, match=r"^array 'few' has shape \(2,\); expected \(6,\), one id a row$"):
        open_source(tmp_path / "x.npz", GREY, ReadOptions(id_column="few"))
    np.savez(tmp_path / "y.npz", X=IMAGES, name=np.array(list("fedfba")))
    with pytest.raises(DataError, match=r"^id 'f' of rows 0 and 3 is not unique; make ids unique"):
        open_source(tmp_path / "y.npz", GREY, ReadOptions(id_column="name"))
    np.save(tmp_path / "z.npy", IMAGES)
    with pytest.raises(ConfigError, match=r"^z\.npy has no columns; leave out 'name'$"):
        open_source(tmp_path / "z.npy", GREY, ReadOptions(id_column="name"))


def test_pixels_in_other_units_are_refused_for_the_whole_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", IMAGES.astype(np.float32))
    with pytest.raises(
        SchemaError, match=r"pixels run from .*, the model was trained on 0 to 1; rescale them"
    ):
        open_source(tmp_path / "x.npy", UNIT)
    np.save(tmp_path / "y.npy", IMAGES / 256)
    with pytest.raises(SchemaError, match=r"the model was trained on 0 to 255; rescale them"):
        open_source(tmp_path / "y.npy", GREY)


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_single_images_out_of_range_or_infinite_are_set_aside(tmp_path: Path, chunk_rows: int | None) -> None:
    images = (IMAGES / 255).astype(np.float32)
    images[1] *= 100
    images[4, 0, 2, 3] = np.inf
    images[5, 0, 0, 0] = 1e30
    np.save(tmp_path / "x.npy", images)
    chunks = read(tmp_path / "x.npy", UNIT, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), images[[0, 2, 3, 5]])
    found = [reject[:4] for reject in rejects_of(chunks)]
    assert found == [(1, "wrong_units", "all pixels", 1), (4, "infinite", "pixel [0, 2, 3]", 4)]


@pytest.mark.parametrize("chunk_rows", CHUNKS)
def test_single_images_of_fractions_are_set_aside_from_whole_numbers(
    tmp_path: Path, chunk_rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "UNITS_ROWS", 2)
    images = IMAGES.astype(np.float32)
    images[3, 0, 0, 0] = 0.5
    images[4] = np.float32(1 / 3)
    images[5] = 1.0
    np.save(tmp_path / "x.npy", images)
    chunks = read(tmp_path / "x.npy", GREY, chunk_rows=chunk_rows)
    np.testing.assert_array_equal(values_of(chunks), images[[0, 1, 2, 5]])
    assert [reject[1:4] for reject in rejects_of(chunks)] == [
        ("wrong_units", "all pixels", 3),
        ("wrong_units", "all pixels", 4),
    ]
