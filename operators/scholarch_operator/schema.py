"""From a pydantic model to the structural schema that a CRD takes."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from scholarch.config.training_run import RULES

_KEPT = (
    "type", "description", "enum", "default", "format", "pattern", "minimum", "maximum", "minLength",
    "maxLength", "maxItems", "maxProperties", "required", "x-kubernetes-int-or-string", RULES,
)  # fmt: skip


def structural(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model: no references, a default for each key that may be left out, rules in CEL."""
    whole = model.model_json_schema(by_alias=True)
    return _converted(whole, whole.get("$defs", {}))


def _converted(node: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    if "anyOf" in node:  # the only unions are those with null, which Kubernetes writes as an absent key
        (only,) = (option for option in node["anyOf"] if option.get("type") != "null")
        return _converted({**only, **_without(node, "anyOf", "default")}, definitions)
    if "$ref" in node:
        found = {**definitions[node["$ref"].rpartition("/")[2]], **_without(node, "$ref")}
        return _converted(found, definitions)
    result = {key: node[key] for key in _KEPT if key in node}
    if "const" in node:
        result["enum"] = [node["const"]]
    if "x-kubernetes-int-or-string" in result:
        del result["type"]
        result["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    if "properties" in node:
        required = node.get("required", [])
        result["properties"] = {
            key: _property(key, value, definitions, required=key in required)
            for key, value in node["properties"].items()
        }
    elif isinstance(node.get("additionalProperties"), dict):
        result["additionalProperties"] = _converted(node["additionalProperties"], definitions)
    if "items" in node:
        result["items"] = _converted(node["items"], definitions)
    if "keyed" in node:
        result |= {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [node["keyed"]]}
    return result


def _property(
    key: str, node: dict[str, Any], definitions: dict[str, Any], *, required: bool
) -> dict[str, Any]:
    result = _converted(node, definitions)
    if not required and "anyOf" not in node:
        result.setdefault("default", [] if result.get("type") == "array" else _inner_defaults(result))
    if node.get("immutable"):
        rule = {"rule": "self == oldSelf", "message": f"{key} cannot change; create another run"}
        result[RULES] = [*result.get(RULES, []), rule]
    return result


def _inner_defaults(section: dict[str, Any]) -> dict[str, Any]:
    """Written out, because the API server applies a section's rules to its default as it stands."""
    properties = section.get("properties", {})
    return {key: value["default"] for key, value in properties.items() if "default" in value}


def _without(node: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in node.items() if key not in keys}
