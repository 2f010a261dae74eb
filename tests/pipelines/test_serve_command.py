"""The verb serve: its help, its refusals in one line, its start and its end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from serving.service.settings import described

ROOT = Path(__file__).parents[2]


def serve(*arguments: object, **environment: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VAE_ANOMALY_")}
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", "serve", *map(str, arguments)],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_help_names_every_setting() -> None:
    out, _ = serve("--help").communicate(timeout=120)
    for name, default, meaning in described():
        assert f"{name} ({default})" in out
        assert meaning.split(";")[0].split(",")[0] in out


@pytest.mark.parametrize(
    ("environment", "code", "message"),
    [
        (
            {"VAE_ANOMALY_HOST": "0.0.0.0"},
            2,
            "host '0.0.0.0' is reached from outside; set VAE_ANOMALY_TOKEN, or listen on 127.0.0.1",
        ),
        ({"VAE_ANOMALY_PORT": "x"}, 2, "VAE_ANOMALY_PORT is 'x'; expected a whole number"),
        ({"VAE_ANOMALY_PORT": "0"}, 1, "no bundle folder at 'nowhere'; "),
    ],
    ids=["host", "port", "model"],
)
def test_what_cannot_be_served_is_one_line(environment: dict[str, str], code: int, message: str) -> None:
    process = serve("nowhere", **environment)
    _, err = process.communicate(timeout=120)
    assert process.returncode == code
    [line] = [line for line in err.splitlines() if line.startswith("vae-anomaly: ")]
    assert line.startswith(f"vae-anomaly: {message}")


def test_it_starts_answers_and_ends(table_folder: Path) -> None:
    process = serve(table_folder, "--port", 0, "--device", "cpu")
    assert process.stderr is not None
    try:
        first = json.loads(process.stderr.readline())
        assert first["provider"] == "CPUExecutionProvider"
        answer = httpx.post(
            f"http://127.0.0.1:{first['port']}/v1/score",
            json={"rows": [{"plain": 0, "large": None, "tiny": 0, "time": 1.7e9}]},
            timeout=30,
        )
        assert answer.status_code == 200
        assert answer.json()["model"]["digest"] == first["digest"]
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
    assert process.returncode == 0
    logged = [json.loads(line) for line in rest.splitlines()]
    [access] = [line for line in logged if line["logger"] == "serving.access"]
    assert access["request_id"] == answer.headers["x-request-id"]
    assert logged[-1]["message"].startswith("stopping")


def test_the_page_on_the_service_names_every_code() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "serving" / "service").glob("*.py"))
    codes = set(re.findall(r'Problem\(\s*\d{3},\s*"(\w+)"', sources))
    codes |= set(re.findall(r'\d{3}, "(\w+)"\)', sources))
    documented = set(re.findall(r"`(\w+)`", (ROOT / "docs" / "service.md").read_text()))
    assert len(codes) > 25
    assert codes - documented - {"internal_error"} == set()
