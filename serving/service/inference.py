"""The Open Inference Protocol, version 2: the same answers for clients of KServe and Triton."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.service import options, samples, tensors
from serving.service.aside import INLINE_BINARY, INLINE_BYTES, INLINE_CELLS, aside
from serving.service.bodies import Bodies, content_type
from serving.service.calls import call_of, header, route
from serving.service.engine import Engine, Models
from serving.service.metrics import Metrics
from serving.service.options import Options
from serving.service.problems import Problem
from serving.service.rates import rate_of
from serving.service.samples import Asked
from serving.service.tensors import Inference
from vae_anomaly import __version__
from vae_anomaly.batches import Feeds
from vae_anomaly.schema import Array, Samples, TableSchema

OCTETS = "application/octet-stream"
HEADER_LENGTH = "inference-header-content-length"
# Names of the models offered, by entry point.
SUFFIXES = {"score": "", "explain": "-explain", "impute": "-impute", "encode": "-encode", "decode": "-decode"}
FOR_ENTRY = {"score": ("alpha",), "impute": ("draws", "seed")}


@dataclass(frozen=True)
class Target:
    """What a path names: one entry point of one version."""

    engine: Engine
    entry: str
    name: str


class OpenInference:
    """Answers tensors.

    Parameters
    ----------
    models : Models
    bodies : Bodies
    metrics : Metrics
    check_ready : callable
        Raises while the server stops.
    """

    def __init__(
        self, models: Models, bodies: Bodies, metrics: Metrics, check_ready: Callable[[], None]
    ) -> None:
        self.models, self.bodies, self.settings = models, bodies, bodies.settings
        self.metrics, self.check_ready = metrics, check_ready

    def routes(self) -> list[Route]:
        """The paths."""
        paths = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        found = [route(f"{path}/infer", self.infer, "POST") for path in paths]  # most asked for
        for path in paths:
            found += [route(path, self.metadata), route(f"{path}/ready", self.ready)]
        return [
            *found,
            route("/v2", self.server),
            route("/v2/health/live", self.alive),
            route("/v2/health/ready", self.welcome),
        ]

    async def server(self, request: Request) -> Response:
        """What the server can do."""
        return JSONResponse(
            {"name": "vae-anomaly", "version": __version__, "extensions": ["binary_tensor_data"]}
        )

    async def alive(self, request: Request) -> Response:
        """The process lives and holds a model."""
        return Response()

    async def welcome(self, request: Request) -> Response:
        """Requests may come."""
        self.check_ready()
        return Response()

    async def ready(self, request: Request) -> Response:
        """The model of this name and version answers."""
        self.check_ready()
        with self._target(request):
            return Response()

    async def metadata(self, request: Request) -> Response:
        """Inputs and outputs of a model."""
        with self._target(request) as target:
            engine = target.engine
            inputs, outputs = signature(engine, target.entry)
            return JSONResponse(
                {
                    "name": target.name,
                    "versions": [engine.version],
                    "platform": "onnxruntime_onnx",
                    "inputs": inputs,
                    "outputs": outputs,
                }
            )

    async def infer(self, request: Request) -> Response:
        """Read, run, reply."""
        call = call_of(request)
        if header(request, b"content-type"):  # tritonclient sends none
            content_type(request, (samples.JSON, OCTETS))
        body = await self.bodies.read(request)
        with self._target(request) as target:
            call.entry = target.entry
            begun = time.monotonic()
            header_length = next(iter(header(request, HEADER_LENGTH.encode())), None)
            # Binary tensors are not parsed, only looked at.
            long = len(body) > (INLINE_BYTES if header_length is None else INLINE_BINARY)
            inference, asked = await aside(long, lambda: self._read(target, body, header_length))
            rate = rate_of(target.engine, asked.options.alpha) if target.entry == "score" else None
            call.rows = asked.rows
            self.metrics.took(target.entry, "read", time.monotonic() - begun)
            out = await self._run(target, asked, call.deadline)
            begun = time.monotonic()
            parameters: dict[str, Any] = {"provider": target.engine.provider}
            if rate is not None:
                out = asked.counted(out)
                self.metrics.judged(target.engine.version, out, rate)
                out, parameters = with_verdicts(out, rate), {**parameters, "alpha": rate}
            size = sum(values.size for values in out.values())
            long = size > (INLINE_BINARY // 8 if inference.binary else INLINE_CELLS)
            content, head = await aside(
                long,
                lambda: tensors.write_inference(
                    inference, out, target.name, target.engine.version, parameters
                ),
            )
            self.metrics.took(target.entry, "write", time.monotonic() - begun)
        headers = {} if head is None else {HEADER_LENGTH: str(head)}
        return Response(content, headers=headers, media_type=samples.JSON if head is None else OCTETS)

    def _read(self, target: Target, body: bytes, header_length: str | None) -> tuple[Inference, Asked]:
        def check_size(rows: int, cells: int) -> None:
            samples.check_size(rows, cells, self.settings)

        bounds = samples.json_bounds(self.settings)
        inference = tensors.read_inference(body, header_length, check_size, bounds)
        known = FOR_ENTRY.get(target.entry, ())
        chosen = options.read_options(known, inference.parameters, target.name)
        return inference, read_inputs(target, inference, chosen)

    async def _run(self, target: Target, asked: Asked, deadline: float) -> Feeds:
        observed = None if target.entry == "decode" else asked.samples.observed
        if observed is not None:
            self.metrics.received(target.entry, observed)
        chosen = asked.options
        out = await target.engine.run(
            target.entry,
            asked.samples.values,
            observed,
            deadline=deadline,
            draws=chosen.draws,
            seed=chosen.seed,
        )
        if "draws" in out:  # rows first, as every other tensor
            out = {**out, "draws": np.moveaxis(out["draws"], 0, 1)}
        return out

    @contextmanager
    def _target(self, request: Request) -> Iterator[Target]:
        """Lease the model that the path names.

        Raises
        ------
        Problem
            404 if there is none.
        """
        name, version = request.path_params["model"], request.path_params.get("version")
        with self.models.current() as engine:
            call_of(request).answered_by(engine)
            known = named(engine.name, engine.entries)
            if name not in known:
                hint = f"the models are {', '.join(known)}"
                raise Problem(404, "unknown_model", "there is no model of this name", hint=hint)
            if version not in (None, engine.version):
                hint = f"version {engine.version} answers; leave the version out to follow it"
                raise Problem(404, "unknown_version", "this version is not served", hint=hint)
            yield Target(engine, known[name], name)


@cache
def named(name: str, entries: tuple[str, ...]) -> dict[str, str]:
    """Entry points by the names of the models that offer them."""
    return {f"{name}{SUFFIXES[entry]}": entry for entry in entries}


def read_inputs(target: Target, inference: Inference, chosen: Options) -> Asked:
    """Samples, or latents, of a request.

    Raises
    ------
    Problem, SchemaError
        If an input is missing, unknown or does not fit.
    """
    known = ("z",) if target.entry == "decode" else ("x", "observed")
    for name in inference.inputs:
        if name not in known:
            raise _wrong_input("there is no input of this name", name, f"the inputs are {', '.join(known)}")
    if known[0] not in inference.inputs:
        raise _wrong_input("the input is missing", known[0], "GET the model's path for its inputs")
    values = inference.inputs[known[0]]
    if target.entry == "decode":
        observed = np.ones(values.shape, np.bool_)
        return Asked(Samples(values, observed), chosen)
    mask = inference.inputs.get("observed")
    if mask is not None and mask.dtype != np.bool_:
        raise _wrong_input("its datatype is not BOOL", "observed", "send true where a value is present")
    read, clipped = samples.read_samples(target.engine.schema, values, mask)
    return Asked(read, chosen, clipped, unseen=samples.unseen_numbers(target.engine.schema, values))


def with_verdicts(out: Feeds, rate: float) -> Feeds:
    """The outputs of a score: what is NaN, where nothing is observed, is no outlier."""
    verdict: Array = out["p_value"] <= rate
    return {"score": out["score"], "p_value": out["p_value"], "is_outlier": verdict, **out}


def signature(engine: Engine, entry: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Inputs and outputs of an entry point, as the protocol describes tensors."""
    schema, latent = engine.schema, engine.bundle.latent_size
    sample = list(schema.shape)
    raw = "FP64" if isinstance(schema, TableSchema) else tensors.datatype(np.dtype(schema.dtype))
    model = "FP64" if isinstance(schema, TableSchema) else "FP32"
    inputs = [_tensor("x", raw, sample), _tensor("observed", "BOOL", sample)]
    if entry == "decode":
        return [_tensor("z", "FP32", [latent])], [_tensor("reconstruction", model, sample)]
    if entry == "encode":
        names = ("mean", "log_variance") if engine.bundle.kind == "vae" else ("mean",)
        return inputs, [_tensor(name, "FP32", [latent]) for name in names]
    if entry == "explain":
        named = {"contributions": "FP32", "reconstruction": model}
        return inputs, [*(_tensor(n, k, sample) for n, k in named.items()), _tensor("recon", "FP64", [])]
    if entry == "impute":
        cells = [_tensor("mean", raw, sample), _tensor("std", model, sample)]
        return inputs, [*cells, _tensor("ess", "FP64", []), _tensor("flags", "BYTES", [])]
    scores = {f"score_{name}": "FP64" for name in engine.bundle.score_names}
    found = {"score": "FP64", "p_value": "FP64", "is_outlier": "BOOL", **scores, "clipped": "INT64"}
    return inputs, [_tensor(name, kind, []) for name, kind in found.items()]


def _tensor(name: str, kind: str, shape: list[int]) -> dict[str, Any]:
    return {"name": name, "datatype": kind, "shape": [-1, *shape]}


def _wrong_input(detail: str, name: str, hint: str) -> Problem:
    return Problem(422, "bad_tensor", f"{name[:40]}: {detail}", hint=hint, field=name)
