"""The endpoints for people: ``POST /v1/score``, ``/v1/explain``, ``/v1/impute`` and ``GET /v1/model``."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.service import options, replies, samples
from serving.service.aside import INLINE_BYTES, INLINE_CELLS, aside
from serving.service.bodies import Bodies, accepted, content_type
from serving.service.calls import call_of, route
from serving.service.engine import Engine, Models
from serving.service.histogram import calibration_histograms
from serving.service.metrics import Metrics
from serving.service.options import Options
from serving.service.rates import rate_of
from serving.service.samples import ARROW, JSON, MEDIA, Asked, Question
from vae_anomaly.batches import Feeds


class Plain:
    """Answers rows and pictures.

    Parameters
    ----------
    models : Models
    bodies : Bodies
    metrics : Metrics
    """

    def __init__(self, models: Models, bodies: Bodies, metrics: Metrics) -> None:
        self.models, self.bodies, self.settings = models, bodies, bodies.settings
        self.metrics = metrics

    def routes(self) -> list[Route]:
        """The paths."""
        entries = [route(f"/v1/{entry}", self._endpoint(entry), "POST") for entry in options.FOR_ENTRY]
        return [*entries, route("/v1/model", self.model)]

    def _endpoint(self, entry: str) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            return await self.answer(request, entry)

        return endpoint

    async def answer(self, request: Request, entry: str) -> Response:
        """Read, run, reply."""
        call = call_of(request)
        call.entry = entry
        media = content_type(request, MEDIA)
        wanted = accepted(request, (ARROW, JSON) if media == ARROW else (JSON, ARROW))
        query = options.from_query(request.scope["query_string"])
        body = await self.bodies.read(request)
        with self.models.current() as engine:
            call.answered_by(engine)
            question = Question(entry, media, body, query, engine.schema, self.settings)
            begun = time.monotonic()
            asked = await aside(len(body) > INLINE_BYTES, lambda: samples.read(question))
            call.rows = asked.rows
            self.metrics.took(entry, "read", time.monotonic() - begun)
            self.metrics.received(entry, asked.samples.observed)
            more = self._checked(entry, asked, engine)
            chosen = asked.options if entry == "impute" else Options()
            out = await engine.run(
                entry,
                asked.samples.values,
                asked.samples.observed,
                deadline=call.deadline,
                draws=chosen.draws,
                seed=chosen.seed,
                ids=chosen.ids,
            )
            if entry == "score":
                out = asked.counted(out)
                self.metrics.judged(engine.version, out, more["alpha"])
            begun = time.monotonic()
            large = asked.samples.values.size > INLINE_CELLS
            content = await aside(large, lambda: _reply(entry, asked, out, engine, wanted, more))
            self.metrics.took(entry, "write", time.monotonic() - begun)
        return Response(content, media_type=wanted)

    def _checked(self, entry: str, asked: Asked, engine: Engine) -> dict[str, Any]:
        """What depends on the model, refused before anything runs."""
        if entry != "score":
            return {}
        known = engine.bundle.score_names
        return {
            "alpha": rate_of(engine, asked.options.alpha),
            "scores": options.check_scores(asked.options.scores, known),
        }

    async def model(self, request: Request) -> Response:
        """The model card: what it is, what a sample is, what it answers."""
        wanted = accepted(request, (JSON, "text/markdown"))
        with self.models.current() as engine:
            call_of(request).answered_by(engine)
            if wanted != JSON:
                from vae_anomaly.card import model_card

                return Response(model_card(engine.bundle.manifest), media_type=wanted)
            return JSONResponse(described(engine, self.settings))


def described(engine: Engine, settings: Any) -> dict[str, Any]:
    """What a client needs to know of the model."""
    manifest = engine.bundle.manifest
    return {
        "name": engine.name,
        "version": engine.version,
        "digest": engine.digest,
        "provider": engine.provider,
        "kind": manifest.kind,
        "schema": engine.schema.to_dict(),
        "scores": list(manifest.scores),
        "default_score": manifest.default_score,
        "false_alarm_rate": manifest.false_alarm_rate,
        "latent_size": manifest.latent_size,
        "calibration": calibration_histograms(engine.bundle.tables, manifest.false_alarm_rate),
        "entries": list(engine.entries),
        "likelihood": manifest.likelihood,
        "architecture": manifest.architecture,
        "provenance": manifest.provenance,
        "warnings": list(manifest.warnings),
        "limits": {
            "bytes": settings.max_body_bytes,
            "rows": settings.max_rows,
            "cells": settings.max_cells,
        },
    }


def _reply(entry: str, asked: Asked, out: Feeds, engine: Engine, wanted: str, more: dict[str, Any]) -> bytes:
    if wanted == ARROW:
        from serving.service.arrow_bodies import write

        return write(entry, asked, out, engine, more)
    if entry == "score":
        results = replies.scored(asked, out, more["alpha"], more["scores"])
        return replies.to_json(engine, results, alpha=more["alpha"])
    made = replies.explained if entry == "explain" else replies.imputed
    return replies.to_json(engine, made(asked, out, engine))
