"""The snippets of the migration guide and of the README run, top to bottom."""

import re
from pathlib import Path

import pytest

from vae_anomaly import fitting, imputer_fitting

ROOT = Path(__file__).parents[1]
GUIDE, README = ROOT / "docs" / "migrate.md", ROOT / "README.md"


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


SNIPPETS = snippets(GUIDE)


def test_only_the_last_snippet_exports() -> None:
    assert [".export(" in snippet for snippet in SNIPPETS] == [False] * 7 + [True]


@pytest.mark.parametrize(
    "count",
    [pytest.param(7, id="before the export"), pytest.param(8, id="all", marks=pytest.mark.slow)],
)
def test_the_migration_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    run(SNIPPETS[:count], tmp_path, monkeypatch)

    assert (tmp_path / "bundle" / "manifest.json").is_file() == (count == 8)


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = run(snippets(README)[:1], tmp_path, monkeypatch)
    assert repr(names["bundle"]).startswith("Bundle")


def run(printed: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    """As printed, but for fewer epochs: no snippet asserts how well a model learns."""
    monkeypatch.setitem(fitting.EPOCHS, "table", (2, 2))
    monkeypatch.setattr(imputer_fitting, "EPOCHS", (2, 2))
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    for snippet in printed:
        exec(compile(snippet, "snippet", "exec"), names)
    return names
