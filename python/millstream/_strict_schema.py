"""JSON schemas in the form that OpenAI's strict mode wants.

The rules are those of openai-python's ``to_strict_json_schema``: every object is closed, every property is required, a
default of null is dropped, a single ``allOf`` is merged, and nothing stands beside a ``$ref`` (here it goes into an
``anyOf``, which a type that contains itself survives). Two are added, since the server refuses what pydantic writes:
``oneOf`` with its ``discriminator`` becomes ``anyOf``, and a ``$ref`` at the top is replaced by what it means.
"""

from __future__ import annotations

import json
from typing import Any

Schema = dict[str, Any]


def strict_schema(schema: Any) -> Any:
    """A copy that keeps the rules."""
    if not isinstance(schema, dict):
        # `true`, which is a schema, too.
        return schema
    made = dict(schema)
    if "$ref" in made and made.keys() - {"$ref", "$defs"}:
        made["anyOf"] = [{"$ref": made.pop("$ref")}]
    for key in ("$defs", "properties"):
        if isinstance(made.get(key), dict):
            made[key] = {name: strict_schema(part) for name, part in made[key].items()}
    if made.get("type") == "object":
        made.setdefault("additionalProperties", False)
    if isinstance(made.get("properties"), dict):
        made["required"] = list(made["properties"])
    if "items" in made:
        made["items"] = strict_schema(made["items"])
    if "oneOf" in made and "anyOf" not in made:
        made["anyOf"] = made.pop("oneOf")
        made.pop("discriminator", None)
    for key in ("anyOf", "allOf"):
        if isinstance(made.get(key), list):
            made[key] = [strict_schema(part) for part in made[key]]
    if isinstance(made.get("allOf"), list) and len(made["allOf"]) == 1:
        made = {**made.pop("allOf")[0], **made}
    if made.get("default", ...) is None:
        del made["default"]
    return made


def inline_root(schema: Schema) -> Schema:
    """The same schema with its own keywords at the top; ``$defs`` that nothing names any more are dropped."""
    if "$ref" not in schema:
        return schema
    target = _target(schema, schema["$ref"])
    inlined = {**target, **{key: value for key, value in schema.items() if key != "$ref"}}
    name = schema["$ref"].rsplit("/", 1)[-1]
    definitions = schema.get("$defs", {})
    # A type that contains itself still needs its name.
    if json.dumps(schema["$ref"]) not in json.dumps([target, *definitions.values()]):
        definitions = {key: value for key, value in definitions.items() if key != name}
    inlined.pop("$defs", None)
    return {**inlined, "$defs": definitions} if definitions else inlined


def _target(root: Schema, reference: str) -> Schema:
    found: Any = root
    for step in reference.removeprefix("#/").split("/"):
        found = found[step.replace("~1", "/").replace("~0", "~")]
    return dict(found)
