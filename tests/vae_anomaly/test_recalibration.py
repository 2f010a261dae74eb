"""The same model judged by other normal rows: new tables, the old graphs, a trace of where they came from."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sample_models import TABLE_MODEL, settings, table_rows

from vae_anomaly import VAEDetector
from vae_anomaly.calibration import p_values
from vae_anomaly.exceptions import BundleError, CalibrationError
from vae_anomaly.runtime import Bundle, load_bundle

NEW = table_rows(99, 21) * 1.02


@pytest.fixture(scope="module")
def moved(table_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("recalibrated") / "bundle"
    digest = table_bundle.recalibrate(NEW, folder)
    return load_bundle(folder, device="cpu", expected_digest=digest)


def test_new_rows_judge_and_the_scores_stay(table_bundle: Bundle, moved: Bundle) -> None:
    asked = table_rows(40, 3)
    before, after = table_bundle.verdicts(asked), moved.verdicts(asked, false_alarm_rate=0.05)
    name = f"score_{table_bundle.default_score}"
    assert np.array_equal(before[name], after[name])
    raw = table_bundle.scores(NEW)[table_bundle.default_score]
    assert np.array_equal(moved.calibration["score_score"], np.sort(raw))
    whole = asked.notna().all(axis=1)
    table = table_bundle.scores(NEW[NEW.notna().all(axis=1)])["score"]
    assert np.array_equal(after["p_value"][whole], p_values(np.sort(table), after["score"][whole]))
    assert not np.array_equal(before["p_value"], after["p_value"])
    # 99 rows can promise what 48 could not.
    assert moved.verdicts(asked, false_alarm_rate=0.01)["is_outlier"].sum() <= 5


def test_normal_rows_of_the_new_kind_are_p_values_of_their_own(moved: Bundle) -> None:
    """The calibration rows themselves, whole ones: every place once, ties aside."""
    whole = NEW[NEW.notna().all(axis=1)]
    scores = moved.scores(whole)["score"]
    assert np.array_equal(moved.p_values(whole), p_values(np.sort(scores), scores))


def test_the_manifest_says_where_the_rows_came_from(
    table_bundle: Bundle, moved: Bundle, tmp_path: Path
) -> None:
    provenance = moved.manifest.provenance
    (told,) = provenance["recalibrated"]
    assert (told["rows"], told["from_digest"]) == (99, table_bundle.digest)
    assert re.fullmatch("[0-9a-f]{64}", told["sha256"])
    assert provenance["rows_calibration"] == 99
    assert provenance["rows_train"] == table_bundle.manifest.provenance["rows_train"]
    card = (moved.path / "README.md").read_text()
    assert "from 99 calibration rows" in card
    again = moved.recalibrate(NEW.iloc[:50], tmp_path / "again")
    told = json.loads((tmp_path / "again" / "manifest.json").read_text())["provenance"]["recalibrated"]
    assert [(one["rows"], one["from_digest"]) for one in told] == [
        (99, table_bundle.digest),
        (50, moved.digest),
    ]
    twice = load_bundle(tmp_path / "again", device="cpu", expected_digest=again)
    assert len(twice.calibration["score_score"]) == 50
    assert np.array_equal(twice.calibration["graph_score"], table_bundle.calibration["score_score"])


def test_graphs_and_self_test_are_the_same_files(table_bundle: Bundle, moved: Bundle) -> None:
    old, new = table_bundle.manifest.files, moved.manifest.files
    assert {name for name in old if old[name] != new[name]} == {"calibration.npz", "README.md"}
    assert old.keys() == new.keys()
    assert np.array_equal(moved.impute(NEW.iloc[:3]).std, table_bundle.impute(NEW.iloc[:3]).std)


def test_the_same_rows_give_the_same_digest(table_bundle: Bundle, moved: Bundle, tmp_path: Path) -> None:
    nothing = NEW.iloc[:1] * np.nan
    with_nothing = table_bundle.recalibrate(np.concatenate([NEW, nothing]), tmp_path / "copy")
    assert with_nothing == moved.digest


def test_too_few_rows_and_a_taken_folder_are_refused(table_bundle: Bundle, tmp_path: Path) -> None:
    sentence = (
        "a false alarm rate of 0.05 needs at least 19 normal rows, got 18; "
        "fit or recalibrate with more rows, or accept a rate of 1/19 or more"
    )
    with pytest.raises(CalibrationError, match=f"^{re.escape(sentence)}$"):
        table_bundle.recalibrate(NEW.iloc[:18], tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "x").touch()
    with pytest.raises(BundleError, match=r"taken exists already; write to a new folder$"):
        table_bundle.recalibrate(NEW, tmp_path / "taken")


def test_a_rate_that_was_raised_comes_back_with_enough_rows(tmp_path: Path) -> None:
    few = VAEDetector(
        settings=settings(TABLE_MODEL, epochs=1, scores=("recon",)), device="cpu", random_state=0
    )
    few.fit(table_rows(60)).export(tmp_path / "few")
    bundle = load_bundle(tmp_path / "few", device="cpu")
    assert bundle.false_alarm_rate == 1 / 13
    assert bundle.manifest.warnings[0].startswith("a false alarm rate of 0.05 needs more than the 12 calib")
    bundle.recalibrate(NEW.iloc[:15], tmp_path / "more")
    bundle.recalibrate(NEW, tmp_path / "enough")
    more, enough = (load_bundle(tmp_path / name, device="cpu") for name in ("more", "enough"))
    assert more.false_alarm_rate == 1 / 16
    assert "more than the 15 calibration rows" in more.manifest.warnings[0]
    assert enough.false_alarm_rate == 0.05
    assert not any("false alarm rate" in warning for warning in enough.manifest.warnings)
    assert len(enough.manifest.warnings) == len(bundle.manifest.warnings) - 1
    assert "false_alarm_rate_asked" not in enough.manifest.provenance
