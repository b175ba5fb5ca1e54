"""The JSON Schema says what the spec accepts, and every number of it has a limit."""

from __future__ import annotations

import copy
import re
import tomllib
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from shared.errors import SpecError
from shared.spec import json_schema, load_spec, preset_names, spec_from_dict, spec_to_dict
from shared.spec.load import PRESETS
from shared.spec.spec import Spec
from tests.unit.spec.test_spec import error_of


def resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    """A node with its reference followed."""
    if "$ref" not in node:
        return node
    target: Any = schema
    for part in node["$ref"].removeprefix("#/").split("/"):
        target = target[part]
    return {**target, **{key: value for key, value in node.items() if key != "$ref"}}


TYPES = {"object": dict, "array": (list, tuple), "integer": int, "number": (int, float), "string": str, "boolean": bool}
LIMITS = {
    "minimum": lambda value, limit: value >= limit,
    "maximum": lambda value, limit: value <= limit,
    "exclusiveMinimum": lambda value, limit: value > limit,
    "exclusiveMaximum": lambda value, limit: value < limit,
    "minLength": lambda value, limit: len(value) >= limit,
    "maxLength": lambda value, limit: len(value) <= limit,
    "pattern": lambda value, limit: re.search(limit, value) is not None,
    "enum": lambda value, limit: value in limit,
    "maxItems": lambda value, limit: len(value) <= limit,
    "const": lambda value, limit: value == limit,
}
ANNOTATIONS = {
    *("title", "description", "default", "type", "properties", "required", "items"),
    *("additionalProperties", "anyOf", "$defs", "$ref"),
}


def schema_problems(schema: dict[str, Any], node: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """What a JSON Schema validator would complain about; every keyword the schema uses must be known here."""
    node = resolve(schema, node)
    assert node.keys() <= LIMITS.keys() | ANNOTATIONS, f"{path}: unknown keywords {node.keys()}"
    if "anyOf" in node and all(schema_problems(schema, each, value, path) for each in node["anyOf"]):
        return [f"{path}: none of anyOf"]
    if "type" in node and (
        not isinstance(value, TYPES[node["type"]]) or (isinstance(value, bool) != (node["type"] == "boolean"))
    ):
        return [f"{path}: not of type {node['type']}"]
    problems = [f"{path}: {key}" for key, holds in LIMITS.items() if key in node and not holds(value, node[key])]
    if node.get("type") == "array":
        for index, item in enumerate(value):
            problems += schema_problems(schema, node["items"], item, f"{path}{index}.")
    if node.get("type") == "object":
        properties = node["properties"]
        problems += [f"{path}{key}: missing" for key in node.get("required", []) if key not in value]
        if node.get("additionalProperties", True) is False:
            problems += [f"{path}{key}: unknown" for key in value if key not in properties]
        for key in value.keys() & properties.keys():
            problems += schema_problems(schema, properties[key], value[key], f"{path}{key}.")
    return problems


@pytest.mark.parametrize("name", preset_names())
def test_the_schema_accepts_preset_files_and_resolved_specs(name: str):
    schema = json_schema()
    written = {"name": name, **tomllib.loads((PRESETS / f"{name}.toml").read_text(encoding="utf-8"))}
    assert schema_problems(schema, schema, written) == []
    assert schema_problems(schema, schema, spec_to_dict(load_spec(name))) == []


def test_the_schema_knows_the_names_of_adaptations():
    schema, values = json_schema(), spec_to_dict(load_spec("tiny"))
    for adaptation, known in (("pr549", True), ({"kind": "document"}, True), ("pr5499", False)):
        values["evaluation"]["adaptation"] = adaptation
        problems = [] if known else ["evaluation.adaptation.: none of anyOf"]
        assert schema_problems(schema, schema, values) == problems


def test_the_schema_requires_exactly_what_a_file_cannot_leave_out():
    schema = json_schema()
    tiny = spec_to_dict(load_spec("tiny"))
    for section, node in (
        ("", schema),
        *((name, resolve(schema, schema["properties"][name])) for name in tiny if name != "name"),
    ):
        for field in node["properties"]:
            values = copy.deepcopy(tiny)
            (values[section] if section else values).pop(field, None)
            values.setdefault("name", "tiny")
            if field in node.get("required", []):
                with pytest.raises(SpecError, match=rf"\b{field}\b.* (is|are) missing"):
                    spec_from_dict(values)
            else:
                spec_from_dict(values)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("model", "num_layer", 4),
        ("model", "patch_size", 17),
        ("training", "dtype", "float16"),
        ("model", "num_layers", "x"),
    ],
)
def test_the_schema_refuses_what_the_spec_refuses(section: str, key: str, value: Any):
    schema = json_schema()
    values = spec_to_dict(load_spec("tiny"))
    values[section][key] = value
    assert schema_problems(schema, schema, values) != []
    with pytest.raises(SpecError):
        spec_from_dict(values)


def leaves(section: type[BaseModel], prefix: str = "") -> dict[str, Any]:
    """The fields of the schema that are no sections, by their keys."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= leaves(field.annotation, f"{prefix}{name}.")
        else:
            found[prefix + name] = field.annotation
    return found


def holds(annotation: Any, kind: type) -> bool:
    """Whether a value of an annotation has numbers of a kind."""
    return annotation is kind or any(holds(part, kind) for part in get_args(annotation))


@pytest.mark.parametrize("kind", [float, int])
def test_no_number_of_the_whole_schema_is_infinite_or_without_a_limit(kind: type) -> None:
    """Infinity cannot be written as JSON, and a size without a limit hangs whatever is built from it."""
    words = {float: ("inf", "-inf", "nan", "1e999"), int: (str(10**25), str(-(10**25)))}[kind]
    keys = [key for key, annotation in leaves(Spec).items() if holds(annotation, kind)]
    assert len(keys) > 40
    for key in keys:
        for word in words:
            value = f"[{word}]" if leaves(Spec)[key] is not kind else word
            assert key in error_of("tiny", f"{key}={value}"), (key, word)


@pytest.mark.parametrize(
    "key",
    ["num_layers", "model_dim", "num_heads", "num_kv_heads", "head_dim", "mlp_dim", "seq_len", "decoder.num_layers"],
)
def test_a_size_that_something_is_built_from_has_a_limit_that_the_error_names(key: str) -> None:
    assert re.search(r"less than or equal to (4096|1048576)$", error_of("tiny", f"model.{key}=1000000000"))
