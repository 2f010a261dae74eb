"""The snippets of the migration guide run, top to bottom."""

import re
from pathlib import Path

import pytest

from vae_anomaly import fitting, imputer_fitting

GUIDE = Path(__file__).parents[1] / "docs" / "migrate.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(encoding="utf-8"), re.M | re.S)


def test_only_the_last_snippet_exports() -> None:
    assert [".export(" in snippet for snippet in SNIPPETS] == [False] * 7 + [True]


@pytest.mark.parametrize(
    "count",
    [pytest.param(7, id="before the export"), pytest.param(8, id="all", marks=pytest.mark.slow)],
)
def test_the_migration_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """As printed, but for fewer epochs: no snippet asserts how well a model learns."""
    monkeypatch.setitem(fitting.EPOCHS, "table", (2, 2))
    monkeypatch.setattr(imputer_fitting, "EPOCHS", (2, 2))
    monkeypatch.chdir(tmp_path)

    names: dict[str, object] = {}
    for snippet in SNIPPETS[:count]:
        exec(compile(snippet, GUIDE.name, "exec"), names)

    assert (tmp_path / "bundle" / "manifest.json").is_file() == (count == 8)
