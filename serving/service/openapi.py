"""The OpenAPI document, made for the model that answers: its columns, its rates, its limits."""

from __future__ import annotations

from typing import Any

from serving.service.engine import Engine
from serving.service.inference import SUFFIXES
from serving.service.options import MAX_DRAWS
from serving.service.problems import MEDIA_TYPE
from serving.service.samples import ARROW, JSON, NPY, PICTURES
from serving.service.settings import Settings
from vae_anomaly import __version__
from vae_anomaly.calibration import smallest_rate
from vae_anomaly.columns import Column
from vae_anomaly.schema import ImageSchema, TableSchema

Spec = dict[str, Any]

BINARY: Spec = {"schema": {"type": "string", "format": "binary"}}
NUMBER_OR_NULL: Spec = {"type": ["number", "null"]}
# What any path may answer, and what one with a body may answer besides.
ALWAYS = (400, 401, 406, 408, 503)
WITH_BODY = (411, 413, 415, 422)
WHY = {
    400: "not well formed, or a wrong Host",
    401: "the bearer token is missing or wrong",
    404: "no such model or version",
    406: "nothing that Accept names can be answered",
    408: "the request did not arrive in time",
    411: "a body without length",
    413: "too many bytes, rows, cells or pixels",
    415: "another content type, or compressed",
    422: "well formed, but it does not fit the model",
    503: "overloaded, too late or stopping; Retry-After says when to come back",
}
SUMMARIES = {
    "score": "How strange is each row, and how often is a normal row as strange?",
    "explain": "What does each cell or pixel contribute, and what was expected instead?",
    "impute": "What belongs in the gaps, and how sure is that?",
}


def document(engine: Engine, settings: Settings) -> Spec:
    """The whole document.

    Parameters
    ----------
    engine : Engine
        Whose model is described.
    settings : Settings
    """
    entries = [entry for entry in SUMMARIES if entry in engine.entries]
    paths: Spec = {f"/v1/{entry}": {"post": _plain(entry, engine)} for entry in entries}
    paths |= {
        "/v1/model": {"get": _get("The model card", {JSON: {"schema": _object()}, "text/markdown": _text()})},
        "/openapi.json": {"get": _get("This document", {JSON: {"schema": _object()}})},
        "/": {"get": _get("The page to try it on", {"text/html": _text()}, public=True)},
        **_inference(engine),
    }
    if settings.ops_port is None:
        paths |= _probes()
    secured: Spec = {"security": [{"token": []}]} if settings.token else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "vae-anomaly",
            "version": __version__,
            "description": "How strange is a sample, and what belongs in its gaps.",
        },
        **secured,
        "paths": paths,
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "responses": {str(status): _problem(text) for status, text in WHY.items()},
            "schemas": _schemas(engine, settings),
        },
    }


def _plain(entry: str, engine: Engine) -> Spec:
    media: Spec = {JSON: {"schema": _ref(f"{entry}-request")}, ARROW: BINARY, NPY: BINARY}
    if isinstance(engine.schema, ImageSchema):
        media |= dict.fromkeys(PICTURES, BINARY)
    return {
        "summary": SUMMARIES[entry],
        "operationId": entry,
        "parameters": [
            {
                "name": name,
                "in": "query",
                "required": False,
                "style": "form",
                "explode": False,
                "schema": schema,
            }
            for name, schema in _options(entry, engine).items()
        ],
        "requestBody": {"required": True, "content": media},
        "responses": _responses({JSON: {"schema": _ref(f"{entry}-answer")}, ARROW: BINARY}, *WITH_BODY),
    }


def _options(entry: str, engine: Engine) -> Spec:
    ids: Spec = {"type": "array", "uniqueItems": True, "items": {"type": "string"}}
    found: Spec = {"ids": {**ids, "description": "one a row"}}
    if isinstance(engine.schema, ImageSchema):
        found["convert"] = {"type": "boolean", "description": "adapt pictures that do not fit"}
    else:
        found["strict"] = {"type": "boolean", "description": "refuse a category that was not in training"}
    if entry == "score":
        least = smallest_rate(len(engine.calibration))
        names = list(engine.bundle.score_names)
        found["alpha"] = {"type": "number", "minimum": least, "exclusiveMaximum": 1}
        found["scores"] = {"type": "array", "items": {"type": "string", "enum": names}}
    if entry == "impute":
        found["draws"] = {"type": "integer", "minimum": 1, "maximum": MAX_DRAWS}
        found["seed"] = {"type": "integer", "minimum": 0, "maximum": 2**53}
    return found


def _inference(engine: Engine) -> Spec:
    paths: Spec = {
        "/v2": {"get": _get("What the server can do", {JSON: {"schema": _object()}})},
        "/v2/health/live": {"get": _get("Open Inference Protocol: alive", {})},
        "/v2/health/ready": {"get": _get("Open Inference Protocol: ready", {})},
    }
    names = ", ".join(f"<name>{suffix}" for suffix in SUFFIXES.values())
    for path in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
        known = {
            "model": [f"{engine.name}{SUFFIXES[e]}" for e in engine.entries],
            "version": [engine.version],
        }
        given = [_in_path(name, values) for name, values in known.items() if f"{{{name}}}" in path]
        infer = {
            "summary": f"Tensors in, tensors out; the models are {names}",
            "parameters": given,
            "requestBody": {
                "required": True,
                "content": {JSON: {"schema": _ref("inference")}, "application/octet-stream": BINARY},
            },
            "responses": _responses(
                {JSON: {"schema": _object()}, "application/octet-stream": BINARY}, 404, *WITH_BODY
            ),
        }
        ready = _get("Whether this model answers", {}, 404)
        described = _get("Inputs and outputs", {JSON: {"schema": _object()}}, 404)
        paths[path] = {"get": described | {"parameters": given}}
        paths[f"{path}/ready"] = {"get": ready | {"parameters": given}}
        paths[f"{path}/infer"] = {"post": infer}
    return paths


def _probes() -> Spec:
    return {
        "/livez": {"get": _get("Whether the process lives", {JSON: {"schema": _object()}}, public=True)},
        "/readyz": {"get": _get("Whether requests may come", {JSON: {"schema": _object()}}, public=True)},
        "/metrics": {"get": _get("Numbers for Prometheus", {"text/plain": _text()})},
    }


def _schemas(engine: Engine, settings: Settings) -> Spec:
    table = isinstance(engine.schema, TableSchema)
    member = "rows" if table else "images"
    found: Spec = {"problem": PROBLEM, "inference": INFERENCE, "model": MODEL}
    for entry in SUMMARIES:
        sent = {"type": "array", "maxItems": settings.max_rows, "items": _sample(engine)}
        options = {name: _nullable(schema) for name, schema in _options(entry, engine).items()}
        found[f"{entry}-request"] = _object({member: sent, **options}, (member,), closed=True)
        answer = _object(
            ANSWERS[entry], tuple(name for name in ANSWERS[entry] if name not in ("draws", "unseen"))
        )
        head = {"alpha": {"type": "number"}} if entry == "score" else {}
        results = {"type": "array", "items": answer}
        found[f"{entry}-answer"] = _object(
            {"model": _ref("model"), **head, "results": results}, ("model", "results")
        )
    return found


def _sample(engine: Engine) -> Spec:
    schema = engine.schema
    if isinstance(schema, TableSchema):
        return _object({column.name: _cell(column) for column in schema.columns}, schema.names, closed=True)
    encoded = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}
    shape = "x".join(map(str, schema.shape))
    picture = {**encoded, "description": f"PNG or JPEG of {shape}; transparent pixels are missing"}
    mask = {**encoded, "type": ["string", "null"], "description": "PNG; black is missing"}
    return _object({"image": picture, "mask": mask}, ("image",), closed=True)


def _cell(column: Column) -> Spec:
    if column.named:
        return {"type": ["string", "null"], "examples": list(column.categories)}
    if column.categories or column.kind == "binary":
        return {"type": ["number", "boolean", "null"]}
    return NUMBER_OR_NULL


ANSWERS: dict[str, Spec] = {
    "score": {
        "score": NUMBER_OR_NULL,
        "p_value": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
        "is_outlier": {"type": ["boolean", "null"]},
        "clipped": {"type": "integer", "minimum": 0},
        "unseen": {"type": "integer", "minimum": 0, "description": "cells with a category not in training"},
        "reason": {"enum": ["nothing_observed", None]},
        "scores": {"type": "object", "additionalProperties": NUMBER_OR_NULL},
    },
    "explain": {"recon": {"type": "number"}, "contributions": {}, "expected": {}},
    "impute": {
        "values": {},
        "std": {},
        "ess": {"type": "number"},
        "flag": {"enum": ["low_ess", "nothing_observed", None]},
        "draws": {"type": "array"},
    },
}
TEXT: Spec = {"type": "string"}
MODEL: Spec = {
    "type": "object",
    "required": ["name", "version", "digest", "provider"],
    "properties": dict.fromkeys(("name", "version", "digest", "provider"), TEXT),
}
PROBLEM: Spec = {
    "type": "object",
    "required": ["type", "title", "status", "code", "detail", "request_id"],
    "properties": {
        **dict.fromkeys(("type", "title", "code", "detail", "hint", "field", "request_id", "error"), TEXT),
        "status": {"type": "integer"},
        "row": {"type": "integer"},
    },
}
INFERENCE: Spec = {
    "type": "object",
    "required": ["inputs"],
    "properties": {
        "id": TEXT,
        "parameters": {"type": "object"},
        "inputs": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "shape", "datatype"],
                "properties": {
                    "name": TEXT,
                    "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
                    "datatype": TEXT,
                    "data": {"type": "array"},
                    "parameters": {"type": "object"},
                },
            },
        },
        "outputs": {"type": "array", "items": {"type": "object", "required": ["name"]}},
    },
}


def _get(summary: str, content: Spec, *statuses: int, public: bool = False) -> Spec:
    free: Spec = {"security": []} if public else {}
    return {"summary": summary, "responses": _responses(content, *statuses), **free}


def _responses(content: Spec, *statuses: int) -> Spec:
    good: Spec = {"description": "the answer", **({"content": content} if content else {})}
    refused = {str(s): {"$ref": f"#/components/responses/{s}"} for s in sorted({*ALWAYS, *statuses})}
    return {"200": good, **refused}


def _problem(text: str) -> Spec:
    return {"description": text, "content": {MEDIA_TYPE: {"schema": _ref("problem")}}}


def _in_path(name: str, known: list[str]) -> Spec:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "enum": known}}


def _object(properties: Spec | None = None, required: tuple[str, ...] = (), closed: bool = False) -> Spec:
    found: Spec = {"type": "object"}
    if properties:
        found |= {"properties": properties, "required": list(required)}
    return found | ({"additionalProperties": False} if closed else {})


def _nullable(schema: Spec) -> Spec:
    return {"anyOf": [schema, {"type": "null"}]}


def _ref(name: str) -> Spec:
    return {"$ref": f"#/components/schemas/{name}"}


def _text() -> Spec:
    return {"schema": TEXT}
