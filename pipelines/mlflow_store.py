"""One run in one MLflow store, a server or a SQLite file.

The only module of `pipelines` that imports mlflow.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from vae_anomaly.mlflow_access import BUNDLE_FOLDER, DIGEST_TAG, mlflow_client, mlflow_session

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature

T = TypeVar("T")
Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step

LOADER = "vae_anomaly.mlflow_model"
# MLflow's own limits on one request.
PARAMS_AT_ONCE, METRICS_AT_ONCE = 100, 1000
# Seconds per request and retries: short for the first question, longer where uploads are awaited.
FIRST_CONTACT = {"timeout": 5, "retries": 1}
PATIENCE = {"timeout": 15, "retries": 2}


class Store:
    """One run in one MLflow store, a server or a SQLite file.

    Parameters
    ----------
    uri : str
    experiment : str
    """

    def __init__(self, uri: str, experiment: str) -> None:
        self.uri = uri
        self.experiment = experiment
        self.run_id: str | None = None
        self._experiment_id = ""
        self._client: MlflowClient | None = None

    @property
    def client(self) -> MlflowClient:
        """Opened on first use."""
        if self._client is None:
            if self._folder is not None:
                self._folder.mkdir(parents=True, exist_ok=True)
            self._client = mlflow_client(self.uri)
        return self._client

    def found(self, run_id: str) -> Run | None:
        """A run of this store, None if it has no such one."""
        client = self.client
        from mlflow.exceptions import MlflowException

        try:
            return client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    def recent(self) -> list[str]:
        """Ids of the latest runs of all experiments."""
        everywhere = [each.experiment_id for each in self.client.search_experiments()]
        return [run.info.run_id for run in self.client.search_runs(everywhere)]

    @property
    def _folder(self) -> Path | None:
        file = self.uri.removeprefix("sqlite:///")
        return Path(file).resolve().parent if file != self.uri else None

    def start(self, name: str, params: Mapping[str, str], tags: Mapping[str, str], when: int) -> None:
        """Open a run; its artifacts go beside a SQLite store, or where a server keeps them."""
        client = self.client  # says what to install before mlflow itself is imported
        from mlflow.entities import Param

        self._experiment_id = self._open_experiment()
        run = client.create_run(self._experiment_id, start_time=when, tags=dict(tags), run_name=name)
        self.run_id = run.info.run_id
        for some in _chunks([Param(key, value) for key, value in params.items()], PARAMS_AT_ONCE):
            self.client.log_batch(self._run, params=some)

    def _open_experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        found = self.client.get_experiment_by_name(self.experiment)
        if found is not None:
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        location = (self._folder / "artifacts").as_uri() if self._folder is not None else None
        try:
            return str(self.client.create_experiment(self.experiment, artifact_location=location))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            return self._open_experiment()  # another run was faster

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags on the run."""
        for key, value in tags.items():
            self.client.set_tag(self._run, key, value)

    def metrics(self, points: Sequence[Point]) -> None:
        """Append to the histories of metrics."""
        from mlflow.entities import Metric

        for some in _chunks([Metric(*point) for point in points], METRICS_AT_ONCE):
            self.client.log_batch(self._run, metrics=some)

    def artifacts(self, folder: Path, name: str) -> None:
        """Copy a folder to the run's artifacts, below ``name``."""
        self.client.log_artifacts(self._run, str(folder), name or None)

    def bundle(
        self, folder: Path, name: str, digest: str, signature: ModelSignature, alias: str | None
    ) -> str:
        """Log a bundle as a model and register it; the version's number."""
        model = self._log_model(folder, name, digest, signature)
        version = self._register(model, name, digest)
        if alias is not None:
            self.client.set_registered_model_alias(name, alias, version)
        return version

    def _log_model(self, folder: Path, name: str, digest: str, signature: ModelSignature) -> LoggedModel:
        from mlflow.entities import LoggedModelOutput

        tags = {DIGEST_TAG: digest}
        model = self.client.create_logged_model(self._experiment_id, name, source_run_id=self._run, tags=tags)
        self.client.log_outputs(self._run, [LoggedModelOutput(model.model_id, step=0)])
        with tempfile.TemporaryDirectory() as draft:
            _write_mlmodel(Path(draft) / "MLmodel", model, self._run, signature)
            self.client.log_model_artifacts(model.model_id, draft)
        self.client.log_model_artifacts(model.model_id, str(folder), BUNDLE_FOLDER)
        return self.client.finalize_logged_model(model.model_id, "READY")

    def _register(self, model: LoggedModel, name: str, digest: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = self.client.create_model_version(
            name,
            # Not models:/<id>, which a SQLite store looks up at MLflow's process-wide address.
            source=model.artifact_location,
            run_id=self._run,
            tags={DIGEST_TAG: digest},
            model_id=model.model_id,
        )
        return str(version.version)

    def model_files(self, model_id: str, scratch: Path) -> tuple[str, str, Path]:
        """Name and digest of a logged model, and its files, copied below ``scratch``."""
        from mlflow.artifacts import download_artifacts

        model = self.client.get_logged_model(model_id)
        files = download_artifacts(
            artifact_uri=model.artifact_location, dst_path=str(scratch), tracking_uri=self.uri
        )
        return str(model.name), model.tags[DIGEST_TAG], Path(files)

    def end(self, status: str, when: int) -> None:
        """Close the run."""
        self.client.set_terminated(self._run, status, when)

    @property
    def _run(self) -> str:
        if self.run_id is None:
            raise RuntimeError("start a run first")
        return self.run_id


def read_signature(mlmodel: Path) -> ModelSignature:
    """The signature in an MLmodel file."""
    from mlflow.models import Model

    signature: ModelSignature = Model.load(str(mlmodel)).signature
    return signature


def _write_mlmodel(path: Path, model: LoggedModel, run_id: str, signature: ModelSignature) -> None:
    # mlflow.pyfunc.save_model would put the bundle below data/ and guess requirements by loading it.
    import mlflow.pyfunc
    from mlflow.models import Model

    described = Model(
        artifact_path=model.artifact_location,
        run_id=run_id,
        model_uuid=model.model_id,
        model_id=model.model_id,
        signature=signature,
    )
    mlflow.pyfunc.add_to_model(described, loader_module=LOADER, data=BUNDLE_FOLDER)
    described.save(str(path))


def signature_of(samples: Any, verdicts: pd.DataFrame | None) -> ModelSignature:
    """Names, types and shapes of samples and, where given, of the verdicts on them."""
    with mlflow_session(**PATIENCE):
        from mlflow.models import infer_signature

        if isinstance(samples, pd.DataFrame):
            # Every column float64 or text, and required: MLflow's integers take no gaps, and what has
            # gaps in the example would count as a column that may be left out.
            numeric = pd.api.types.is_numeric_dtype
            samples = pd.DataFrame({n: [0.0 if numeric(c.dtype) else ""] for n, c in samples.items()})
        with warnings.catch_warnings():
            # That integers take no gaps: the counts among the verdicts have none.
            warnings.filterwarnings("ignore", message="Hint: Inferred schema contains integer")
            return infer_signature(samples, verdicts)


def _chunks(items: list[T], size: int) -> Iterator[list[T]]:
    return (items[i : i + size] for i in range(0, len(items), size))
