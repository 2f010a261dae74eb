"""The files of docs/deploy.md against the service, and the Dockerfile's steps, run without torch."""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.service.settings import described

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "docs" / "deploy"
VARIABLES = {name for name, _, _ in described()}
PROBES = {"/livez", "/readyz"}
TOKEN = "a-token-of-this-test"


def dockerfile() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def environment() -> dict[str, str]:
    (line,) = [line for line in dockerfile() if line.startswith("ENV ")]
    return dict(part.split("=", 1) for part in shlex.split(line.removeprefix("ENV ")))


def manifests() -> list[dict[str, Any]]:
    texts = [(DEPLOY / name).read_text() for name in ("kubernetes.yaml", "kserve.yaml")]
    return [part for text in texts for part in yaml.safe_load_all(text)]


def containers(part: Any) -> Iterator[dict[str, Any]]:
    if isinstance(part, dict):
        yield from part.get("containers", [])
        part = list(part.values())
    if isinstance(part, list):
        for item in part:
            yield from containers(item)


CONTAINERS = {container["name"]: container for container in containers(manifests())}


@pytest.mark.parametrize("name", ["vae-anomaly.service", "kubernetes.yaml", "kserve.yaml", "Dockerfile"])
def test_every_setting_is_one_of_the_service(name: str) -> None:
    named = set(re.findall(r"VAE_ANOMALY_[A-Z_]+", (DEPLOY / name).read_text()))
    assert named <= VARIABLES


def test_the_text_names_settings_of_the_service() -> None:
    assert set(re.findall(r"VAE_ANOMALY_[A-Z_]+", (ROOT / "docs" / "deploy.md").read_text())) <= VARIABLES


@pytest.mark.parametrize("name", CONTAINERS)
def test_ports_probes_and_volumes_fit_the_image(name: str) -> None:
    container = CONTAINERS[name]
    (exposed,) = [line.split()[1:] for line in dockerfile() if line.startswith("EXPOSE")]
    named = {port.get("name"): str(port["containerPort"]) for port in container["ports"]}
    probes = [value["httpGet"] for key, value in container.items() if key.endswith("Probe")]

    assert set(named.values()) <= set(exposed)
    assert {probe["path"] for probe in probes} <= PROBES
    assert {named.get(probe["port"], str(probe["port"])) for probe in probes} == {
        environment()["VAE_ANOMALY_OPS_PORT"]
    }
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {
        environment()["XDG_CACHE_HOME"],
        environment()["HOME"],
    }


def test_the_image_runs_unprivileged() -> None:
    user = next(line for line in dockerfile() if line.startswith("USER")).split()[1]
    assert int(user) > 0
    assert {str(pod["securityContext"].get("runAsUser", user)) for pod in CONTAINERS.values()} == {user}


@pytest.mark.slow
def test_the_steps_of_the_dockerfile_make_a_service_without_torch(tmp_path: Path) -> None:
    prefix = tmp_path / "opt"
    for line in dockerfile():
        if line.startswith("RUN") and "/opt/vae-anomaly" in line:
            command = line.removeprefix("RUN ").replace("/opt/vae-anomaly", str(prefix))
            command = re.sub(r"^python ", f"{shlex.quote(sys.executable)} ", command)
            done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True)
            if "Failed to establish a new connection" in done.stderr:
                pytest.skip("no package registry is at hand")
            assert done.returncode == 0, done.stderr[-2000:]
    python = str(prefix / "bin" / "python")
    missing = subprocess.run([python, "-c", "import torch"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'torch'" in missing.stderr

    with running(prefix / "bin" / "vae-anomaly", tmp_path) as (main, ops):
        assert ask(f"{ops}/livez") == {"status": "live"}
        model = ask(f"{main}/v1/model")
        cells = model["schema"]["channels"] * model["schema"]["height"] * model["schema"]["width"]
        tensor = {"name": "x", "datatype": "UINT8", "shape": [1, cells], "data": [0] * cells}
        if model["schema"]["dtype"] != "uint8":
            tensor["datatype"] = "FP32"
        answer = ask(f"{main}/v2/models/{model['name']}/infer", {"inputs": [tensor]})
        assert 0 < next(o for o in answer["outputs"] if o["name"] == "p_value")["data"][0] <= 1
        with urllib.request.urlopen(f"{ops}/metrics") as metrics:
            assert b"vae_anomaly_rows_total" in metrics.read()


@contextmanager
def running(command: Path, folder: Path) -> Iterator[tuple[str, str]]:
    main, ops = free_port(), free_port()
    (folder / "cache").mkdir()
    settings = {
        **{name: value for name, value in environment().items() if name.startswith("VAE_ANOMALY_")},
        "VAE_ANOMALY_PORT": str(main),
        "VAE_ANOMALY_OPS_PORT": str(ops),
        "VAE_ANOMALY_TOKEN": TOKEN,
        "XDG_CACHE_HOME": str(folder / "cache"),
        "HOME": str(folder),
        "PATH": os.environ["PATH"],
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    started = subprocess.Popen([str(command), "serve"], cwd=folder, env=settings, stderr=subprocess.PIPE)
    with started as process:
        try:
            await_ready(f"http://127.0.0.1:{ops}", process)
            yield f"http://127.0.0.1:{main}", f"http://127.0.0.1:{ops}"
        finally:
            process.terminate()
            assert process.wait(30) in (0, 143)


def await_ready(ops: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert process.poll() is None, process.stderr.read() if process.stderr else ""
        try:
            ask(f"{ops}/readyz")
            return
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.1)
    raise AssertionError("the service was not ready within 60 s")


def ask(url: str, body: Any = None) -> Any:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])
