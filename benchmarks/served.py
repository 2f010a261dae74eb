"""Services under measurement: ours and MLflow's, each in a process of its own on a free port."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

START_SECONDS = 180.0
TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Served:
    """A server from its start to its end.

    Attributes
    ----------
    ready_seconds : float
        From the start of the process to the first 200 of its probe.
    """

    def __init__(self, command: Sequence[str], probe: str, port: int, log: Path, **settings: object) -> None:
        self.port, self.probe, self.log = port, probe, log
        environment = os.environ | {
            f"VAE_ANOMALY_{key.upper()}": str(value) for key, value in settings.items()
        }
        # MLflow looks for uvicorn there.
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        self._file = log.open("wb")
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            command, stdout=self._file, stderr=self._file, env=environment, start_new_session=True
        )
        self.ready_seconds = 0.0

    def __enter__(self) -> Served:
        while True:
            try:
                if self.get(self.probe)[0] == 200:
                    break
            except OSError:
                pass
            spent = time.perf_counter() - self._started
            if self.process.poll() is not None or spent > START_SECONDS:
                self.stop()
                raise SystemExit(f"the server did not start; its last words:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)
        self.ready_seconds = time.perf_counter() - self._started
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End it and what it started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(60)
        self._file.close()

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET."""
        return self.ask("GET", path)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def cpu_seconds(self) -> float:
        """Processor time so far, of all its processes."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                fields = stat.read_text().rpartition(")")[2].split()
                if int(fields[3]) == self.process.pid:  # its session
                    ticks += int(fields[11]) + int(fields[12])
        return ticks / TICKS

    def memory_mb(self) -> float:
        """Resident memory."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def logged(self) -> list[dict[str, Any]]:
        """What it logged as JSON."""
        lines = self.log.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]


def ours(model: str | None, folder: Path, module: str = "pipelines.cli", **settings: object) -> Served:
    """``vae-anomaly serve``; settings as the environment names them."""
    port = free_port()
    command = [sys.executable, "-m", module, "serve", *([model] if model else []), "--port", str(port)]
    return Served(command, "/readyz", port, folder / f"serve-{port}.log", **settings)


def mlflows(bundle: Path, folder: Path) -> Served:
    """``mlflow models serve`` of the same bundle, through its own Python function."""
    import mlflow

    model, port = folder / "mlflow-model", free_port()
    if not model.exists():
        mlflow.pyfunc.save_model(model, loader_module="vae_anomaly.mlflow_model", data_path=str(bundle))
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(model), "-p", str(port)]
    return Served([*command, "--env-manager", "local"], "/ping", port, folder / f"mlflow-{port}.log")
