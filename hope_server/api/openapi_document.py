"""Puts the API's description together from the routes, the schemas of their bodies and the table of operations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from hope_server.api.errors import codes_of_status
from hope_server.api.json_body import JsonBody
from hope_server.api.openapi_answers import ErrorAnswer
from hope_server.api.openapi_operations import HEADERS, OPERATIONS, PARAMETERS, Operation

__all__ = ["build_document"]

_REF = "#/components/schemas/{model}"
_ABOUT = (
    "An inference server whose sessions learn. Turns follow OpenAI's API; `memory` in a request says what a turn may "
    "do with its session, and `memory` in an answer is the receipt of what it did."
)


def build_document(routers: Sequence[APIRouter], model_id: str) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of what `routers` serve with the model of that id."""
    routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
    document = get_openapi(
        title="HOPE Server", version=_version(), openapi_version="3.1.0", description=_ABOUT, routes=routes
    )
    bodies = [_body_model(route) for route in routes]
    asked, answered = _body_schemas([body for body in bodies if body is not None], model_id), _answer_schemas()
    assert not asked.keys() & answered.keys(), "a body and an answer have shapes of one name"
    paths: dict[str, dict[str, Any]] = {}
    for route, body in zip(routes, bodies, strict=True):
        # A path that takes slashes is written like any other.
        path = route.path_format
        for method in sorted((route.methods or set()) - {"HEAD"}):
            given = document["paths"][path][method.lower()]
            operation = OPERATIONS[f"{method} {path}"]
            paths.setdefault(path, {})[method.lower()] = _operation(route.name, given, operation, body)
    components = {
        "schemas": {},
        "responses": {f"Error{status}": _error(status) for status in _all_errors()},
        "securitySchemes": {
            "key": {"type": "http", "scheme": "bearer", "description": "A key, if the server has any."}
        },
    }
    found = {
        "openapi": document["openapi"],
        "info": document["info"],
        "security": [{}, {"key": []}],
        "paths": paths,
        "components": components,
    }
    components["schemas"] = _reachable(found, asked | answered)
    return found


def _reachable(document: Mapping[str, Any], schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schemas that the document needs; pydantic also gives those of types that no caller sees."""
    found: dict[str, Any] = {}
    stack: list[Any] = [document]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            name = str(value.get("$ref", "")).removeprefix(_REF.format(model=""))
            if name in schemas and name not in found:
                found[name] = schemas[name]
                stack.append(schemas[name])
            stack += value.values()
        elif isinstance(value, list):
            stack += value
    return dict(sorted(found.items()))


def _version() -> str:
    try:
        return version("hope-server")
    except PackageNotFoundError:
        return "0"


def _body_model(route: APIRoute) -> type[BaseModel] | None:
    calls = (dependency.call for dependency in route.dependant.dependencies)
    return next((call.model for call in calls if isinstance(call, JsonBody)), None)


def _body_schemas(models: Iterable[type[BaseModel]], model_id: str) -> dict[str, Any]:
    wanted = sorted({model.__name__: model for model in models}.items())
    _, found = models_json_schema([(model, "validation") for _, model in wanted], ref_template=_REF)
    schemas: dict[str, Any] = found["$defs"]
    for schema in schemas.values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"enum": [model_id, None], "description": "The served model, or null."}
    return schemas


def _answer_schemas() -> dict[str, Any]:
    kinds = {operation.answer for operation in OPERATIONS.values() if isinstance(operation.answer, type)}
    inputs = [(name, "serialization", TypeAdapter(kind)) for name, kind in _named(kinds | {ErrorAnswer})]
    _, found = TypeAdapter.json_schemas(inputs, ref_template=_REF)  # type: ignore[arg-type]
    schemas: dict[str, Any] = found["$defs"]
    for schema in schemas.values():
        if "properties" in schema and schema["title"] != "MemoryAnswer":
            schema["additionalProperties"] = False
    # JSON has no number for a norm that is not finite.
    norms = schemas["Receipt"]["properties"]["update_norm"]
    norms["additionalProperties"] = {"type": ["number", "null"]}
    return schemas


def _named(kinds: Iterable[Any]) -> list[tuple[str, Any]]:
    return sorted(((kind.__name__, kind) for kind in kinds if kind.__name__ != "dict"), key=lambda pair: pair[0])


def _operation(
    name: str, given: Mapping[str, Any], operation: Operation, body: type[BaseModel] | None
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "tags": [operation.tag],
        "operationId": name,
        "summary": given["summary"],
        "description": given["description"],
    }
    parameters = [_parameter(each) for each in given.get("parameters", [])]
    parameters += [{"name": name, "in": "header", "required": False, **HEADERS[name]} for name in operation.headers]
    if parameters:
        found["parameters"] = parameters
    if operation.body_type is not None:
        content = {operation.body_type: {"schema": {"type": "string", "format": "binary"}}}
        found["requestBody"] = {"required": True, "content": content}
    elif body is not None:
        found["requestBody"] = _request_body(body, operation)
    found["responses"] = _responses(operation)
    return found


def _parameter(given: Mapping[str, Any]) -> dict[str, Any]:
    known = PARAMETERS[given["name"]]
    schema = known.get("schema") or given["schema"]
    return {**given, **known, "schema": schema}


def _request_body(body: type[BaseModel], operation: Operation) -> dict[str, Any]:
    content = {
        "schema": {"$ref": _REF.format(model=body.__name__)},
        "examples": {name: {"value": value} for name, value in operation.examples.items()},
    }
    # No body at all counts as an empty object.
    is_required = any(field.is_required() for field in body.model_fields.values())
    return {"required": is_required, "content": {"application/json": content}}


def _responses(operation: Operation) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {"schema": _answer(operation)}}
    if operation.is_streamed:
        content["text/event-stream"] = {"schema": {"description": "With stream: true, server-sent events."}}
    found: dict[str, Any] = {
        str(status): {"description": HTTPStatus(status).phrase, "content": content} for status in operation.statuses
    }
    for status in sorted(operation.errors - set(operation.statuses)):
        found[str(status)] = {"$ref": f"#/components/responses/Error{status}"}
    return found


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.answer is None:
        return (
            {"type": "string"} if operation.media_type.startswith("text/") else {"type": "string", "format": "binary"}
        )
    if not isinstance(operation.answer, type) or operation.answer.__name__ == "dict":
        return {"type": "object"}
    return {"$ref": _REF.format(model=operation.answer.__name__)}


def _all_errors() -> list[int]:
    return sorted(frozenset().union(*(operation.errors for operation in OPERATIONS.values())))


def _error(status: int) -> dict[str, Any]:
    codes = codes_of_status(status)
    kind = "not_found_error" if status == 404 else "invalid_request_error" if status < 500 else "server_error"
    example = {
        "error": {"message": "what happened, the limit, what to do", "type": kind, "param": None, "code": codes[0]}
    }
    content = {"schema": {"$ref": _REF.format(model="ErrorAnswer")}, "example": example}
    return {
        "description": f"{HTTPStatus(status).phrase}; code: {', '.join(codes)}.",
        "content": {"application/json": content},
    }
