"""From a preset name or TOML file plus overrides to one resolved, checked Spec.

Precedence: preset or file, then `section.key=value` overrides in the order given. Every error names
the key, the value, what is allowed and, for an unknown key, the nearest valid one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import textwrap
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from shared.errors import SpecError, nearest, problem_text
from shared.files import check_regular
from shared.parsing import parse_toml
from shared.spec.adaptation import SETTINGS, named_adaptation
from shared.spec.base import shown
from shared.spec.migrate import migrated, new_name
from shared.spec.qat import check_qat_width, check_surrogates
from shared.spec.spec import Spec

# Fields without a constant default that a file may still leave out: they follow from others.
DERIVED_FIELDS = {
    "Spec": frozenset({"name", "evaluation"}),
    "ModelSpec": frozenset({"head_dim", "mlp_dim", "tie_embeddings", "decoder", "attention"}),
    "AttentionSpec": frozenset({"rope_dims"}),
    "DecoderSpec": frozenset({"kind"}),
    "TrainingSpec": frozenset({"micro_batch_symbols", "qat"}),
    "QatSpec": frozenset({"bits"}),
    "EvaluationSpec": frozenset({"stride_symbols", "batch_symbols"}),
}

# Characters of a list in a message, which must stay readable.
MAX_LISTED = 240
PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,120}")

PRESETS = resources.files("shared.spec") / "presets"


def preset_names() -> list[str]:
    """Names of the built-in specs, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in PRESETS.iterdir() if entry.name.endswith(".toml"))


def load_spec(source: str | Path, overrides: Iterable[str] = ()) -> Spec:
    """The resolved spec of a preset name or a `.toml` path, with `section.key=value` overrides applied.

    Raises SpecError (one line) for an unknown preset, unreadable file, unknown key or bad value.
    """
    spec = _checked(_migrated(_read(source), str(source), complete=False), overrides, origin=str(source))
    try:
        check_qat_width(spec.training.qat, spec.artifact.matrix.bits)
        check_surrogates(spec.training.qat, spec.training.loss.code_entropy.weight, spec.artifact)
    except ValueError as error:
        raise SpecError(f"{source}: {error}") from None
    return spec


def read_stored_spec(path: Path) -> Spec:
    """The spec that this program, or an earlier version, left in a TOML file. Raises SpecError if it cannot be read.

    It may be older than a rule about what is worth training.
    """
    return stored_spec(_read(path), origin=str(path))


def stored_spec(values: Mapping[str, Any], origin: str) -> Spec:
    """The spec of nested mappings that this program, or an earlier version, wrote into a file. Raises SpecError."""
    return _of_a_run(spec_from_dict(_migrated(values, origin, complete=True), origin), origin)


def with_overrides(spec: Spec, overrides: Iterable[str]) -> Spec:
    """A resolved spec with `section.key=value` overrides applied. Raises SpecError as `load_spec`."""
    return _checked(spec_to_dict(spec), overrides, origin=spec.name)


def spec_from_dict(values: Mapping[str, Any], origin: str = "spec") -> Spec:
    """Validate nested mappings by today's schema into a Spec. Raises SpecError; `origin` names the source in it."""
    try:
        return Spec.model_validate(dict(values))
    except ValidationError as error:
        raise SpecError(f"{origin}: {_first_problem(error)}") from None


def spec_to_dict(spec: Spec) -> dict[str, Any]:
    """The resolved spec as nested plain dicts, every default written out."""
    return spec.model_dump(mode="json")


def spec_to_toml(spec: Spec) -> str:
    """The resolved spec as TOML; `load_spec` of it gives an equal Spec."""
    return tomli_w.dumps(spec_to_dict(spec))


def spec_to_short_toml(spec: Spec) -> str:
    """The spec as TOML without what every spec has by default; `stored_spec` of it gives an equal Spec."""
    return tomli_w.dumps(spec.model_dump(mode="json", exclude_defaults=True))


def spec_id(spec: Spec) -> str:
    """16 hex digits that identify the function a spec computes: SHA-256 over what differs from the defaults in its
    vocabulary and model.

    So a new field that is off by default leaves ids as they are. An id in a file is one of the version that wrote it:
    compare ids of specs that were read, not those in files.
    """
    values = spec.model_dump(mode="json", include={"vocabulary", "model"}, exclude_defaults=True)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a spec file, for editors. A file may leave out what the schema does not require."""
    schema = Spec.model_json_schema()
    for name, section in {"Spec": schema, **schema["$defs"]}.items():
        derived = DERIVED_FIELDS.get(name, frozenset())
        section["required"] = [field for field in section.get("required", []) if field not in derived]
    # The section may be a name.
    evaluation = schema["$defs"]["EvaluationSpec"]["properties"]
    table = evaluation["adaptation"]
    choices = [{"type": "string", "enum": list(SETTINGS)}, {"$ref": table.pop("$ref")}]
    text = "how a model learns from scored text: a section, or the name of a setting"
    evaluation["adaptation"] = {**table, "description": text, "anyOf": choices}
    return schema


def _of_a_run(spec: Spec, origin: str) -> Spec:
    """The spec, which is not that of a learner at evaluation."""
    if spec.model.lora.rows:
        raise SpecError(f"{origin}: model.lora.rows = {spec.model.lora.rows}: must be 0, only adaptation sets it")
    return spec


def _checked(values: dict[str, Any], overrides: Iterable[str], origin: str) -> Spec:
    for override in overrides:
        _apply_override(values, override)
    return _of_a_run(spec_from_dict(values, origin), origin)


def _migrated(values: Mapping[str, Any], origin: str, *, complete: bool) -> dict[str, Any]:
    try:
        return migrated(values, complete=complete)
    except SpecError as error:
        raise SpecError(f"{origin}: {error}") from None


def _read(source: str | Path) -> dict[str, Any]:
    text = str(source)
    if text.endswith(".toml"):
        path = Path(source)
        try:
            check_regular(path)
            # Some editors begin a file with a byte order mark.
            content, name = path.read_text(encoding="utf-8-sig"), path.stem
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise SpecError(f"{path}: cannot read the spec ({reason})") from None
    else:
        if text not in preset_names():
            names = preset_names()
            allowed = f"presets: {', '.join(names)}, or a path to a .toml file"
            raise SpecError(f"no preset {shown(text)}{nearest(text, names)}; {allowed}")
        content, name = (PRESETS / f"{text}.toml").read_text(encoding="utf-8"), text
    try:
        values = parse_toml(content)
    except ValueError as error:
        raise SpecError(f"{source}: not valid TOML ({error})") from None
    values.setdefault("name", _plain_name(name))
    return values


def _plain_name(stem: str) -> str:
    """The name of a spec whose file has this one, which may have any characters."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-").lstrip("._-") or "spec"


def _apply_override(values: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place; the value is TOML, or a bare string, which a dataset called 2024 is too."""
    key, separator, raw = override.partition("=")
    path = key.strip().split(".")
    if not separator or not all(path):
        raise SpecError(f"--set {shown(override)}: write it as section.key=value")
    if renamed := new_name(".".join(path)):
        raise SpecError(f"--set {shown(override)}: {'.'.join(path)} is called {renamed} now")
    try:
        table = parse_toml(f"value = {raw.strip()}")
        # A line feed in the text may begin another key.
        value = table["value"] if len(table) == 1 else raw.strip()
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    except ValueError as error:
        raise SpecError(f"--set {shown(override)}: {error}") from None
    target: Any = values
    for part in path[:-1]:
        if part == "adaptation":
            # Fields may follow the name of a setting.
            try:
                target[part] = named_adaptation(target.get(part, {}))
            except ValueError as error:
                raise SpecError(f"--set: {error}") from None
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise SpecError(f"--set {shown(override)}: {shown(part)} is a value, not a section")
    field = _field_at(path)
    if field is not None and field.annotation is str and not isinstance(value, str | list | dict):
        value = raw.strip()
    target[path[-1]] = copy.deepcopy(value)


def _first_problem(error: ValidationError) -> str:
    """One line for the most telling problem: an unknown key before a consequence of it."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    # Of an unknown key a file may have made a name of any length, with anything in it.
    key = key if PLAIN_KEY.fullmatch(key) else shown(key)
    match problem["type"]:
        case "extra_forbidden":
            siblings = list(_section_at(problem["loc"][:-1]).model_fields)
            word = str(problem["loc"][-1])
            elsewhere = [path for path in _paths(Spec) if path.rpartition(".")[2] == word]
            # A letter too few in the right section before a field of that name in another.
            hint = nearest(word, siblings)
            near = any(each.startswith(word) or word.startswith(each) for each in siblings)
            if elsewhere and not (hint and near):
                hint = f", did you mean {' or '.join(elsewhere)}?"
            allowed = textwrap.shorten(", ".join(siblings), MAX_LISTED, placeholder=" ...")
            return f"unknown key {key}{hint or f'; allowed here: {allowed}'}"
        case "missing":
            missing = _missing([each["loc"] for each in problems if each["type"] == "missing"])
            verbs = ("is", "it has") if len(missing) == 1 else ("are", "they have")
            return f"{', '.join(missing)} {verbs[0]} missing: {verbs[1]} no default"
        case "value_error":
            return str(problem["ctx"]["error"])
        case "string_pattern_mismatch" if (field := _field_at(problem["loc"])) is not None:
            return f"{key} = {shown(problem['input'])}: must be {field.description}"
        case "model_type":
            return f"{key} = {shown(problem['input'])}: must be a section"
        case _:
            return f"{key} = {shown(problem['input'])}: {problem_text(problem['msg'])}"


def _missing(locations: Sequence[tuple[int | str, ...]]) -> list[str]:
    """`section.key` of what a file must give, of a section all that it must have. What follows from other fields is
    named only if nothing else is missing."""
    given = [".".join(map(str, location)) for location in locations]
    required = list(_required(Spec))
    return [key for key in required if any(f"{key}.".startswith(f"{each}.") for each in given)] or given[:1]


def _required(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """`section.key` of every field below a section that a file must give."""
    derived = DERIVED_FIELDS.get(section.__name__, frozenset())
    for name, field in section.model_fields.items():
        if not field.is_required() or name in derived:
            continue
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _required(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def _field_at(location: Sequence[int | str]) -> FieldInfo | None:
    """The field at a location; None if there is none."""
    try:
        return _section_at(location[:-1]).model_fields.get(str(location[-1]))
    except (KeyError, AssertionError):
        return None


def _section_at(location: Sequence[int | str]) -> type[BaseModel]:
    """The section at a location."""
    section: type[BaseModel] = Spec
    for part in location:
        if isinstance(part, str):
            annotation = section.model_fields[part].annotation
            # Of a list of sections, the place in it follows.
            annotation = get_args(annotation)[0] if get_args(annotation) else annotation
            assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
            section = annotation
    return section


def _paths(section: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """`section.key` of every field below a section."""
    for name, field in section.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _paths(field.annotation, f"{prefix}{name}.")
