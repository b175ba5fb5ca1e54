"""The spec: presets, overrides, errors, identity, round trip."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from shared.errors import SpecError
from shared.spec import json_schema, load_spec, preset_names, spec_from_dict, spec_id, spec_to_dict, spec_to_toml
from shared.spec.difference import fields
from shared.spec.load import PRESETS
from tests import ROOT

TINY = (PRESETS / "tiny.toml").read_bytes()

# Valid values of fields that do not determine the function, for random overrides.
OTHER_CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    "optimizer.matrix_lr": st.floats(0.0, 1.0),
    "optimizer.adapter_lr": st.floats(0.0, 1.0),
    "optimizer.muon_momentum": st.floats(0.0, 1.0),
    "optimizer.ns_steps": st.integers(1, 10),
    "optimizer.ns_dtype": st.sampled_from(["float32", "bfloat16"]),
    "optimizer.ns_coefficients": st.sampled_from(["quintic", "polar_express"]),
    "optimizer.muon_row_normalise": st.booleans(),
    "optimizer.normuon": st.booleans(),
    "optimizer.normuon_beta2": st.floats(0.0, 0.999),
    "optimizer.adam_eps": st.floats(1e-12, 1e-3),
    "schedule.warmdown_shape": st.sampled_from(["linear", "cosine"]),
    "schedule.warmdown_frac": st.floats(0.0, 1.0),
    "schedule.decay_end_frac": st.floats(0.0, 1.0),
    "schedule.decay_taper_start_frac": st.floats(0.0, 0.999),
    "schedule.decay_follows_lr": st.booleans(),
    "data.train": st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=20),
    "training.seed": st.integers(0, 2**31),
    "training.steps": st.integers(1, 10**6),
    "training.batch_symbols": st.integers(1, 64).map(lambda rows: 64 * rows),
    "training.compile": st.booleans(),
    "training.ema_decay": st.floats(0.0, 0.999),
    "training.swa_share": st.floats(0.01, 0.99),
    "data.selection_frac": st.floats(0.0, 0.999),
    "artifact.matrix.bits": st.sampled_from([6, 8]),
    "artifact.brotli_quality": st.integers(0, 11),
    "artifact.logits": st.sampled_from(["none", "temperature", "temperature_bias"]),
    "evaluation.stride_symbols": st.integers(1, 64),
    "evaluation.confidence": st.floats(0.51, 0.999),
    "budget.total_bytes": st.integers(1, 10**9),
}


def toml_value(value: Any) -> str:
    """A value as it stands in a TOML file."""
    import tomli_w

    return tomli_w.dumps({"value": value}, multiline_strings=False).removeprefix("value = ").rstrip("\n")


def error_of(source: str, *overrides: str) -> str:
    with pytest.raises(SpecError) as caught:
        load_spec(source, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_field_is_described():
    sections = {"Spec": json_schema(), **json_schema()["$defs"]}
    assert all(node["description"] for node in sections.values())
    fields = {f"{name}.{key}": field for name, node in sections.items() for key, field in node["properties"].items()}
    described = {key: field.get("description", "") for key, field in fields.items() if "$ref" not in field}
    assert len(described) > 140
    assert not [name for name, text in described.items() if len(text.split()) < 3]
    assert not [name for name, text in described.items() if text != text.strip() or text.endswith(".")]


TOML_BLOCKS = [
    pytest.param(block, id=f"{path.name}-{index}")
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "tests/README.md"])
    if path.is_file()
    for index, block in enumerate(re.findall(r"^```toml\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL))
]


@pytest.mark.parametrize("block", TOML_BLOCKS)
def test_what_the_documents_show_of_a_spec_loads(block: str, tmp_path: Path):
    path = tmp_path / "shown.toml"
    path.write_text(block, encoding="utf-8")
    assert load_spec(path).name == "shown"


def test_the_shapes_the_presets_promise():
    itchy, plain = load_spec("itchy").model, load_spec("bytes").model
    assert (itchy.model_dim, itchy.num_layers, itchy.patch_size, itchy.decoder.kind) == (384, 11, 12, "mlp")
    assert (plain.patch_size, plain.decoder.kind, plain.tie_embeddings) == (1, "linear", True)


def test_derived_defaults_are_written_out():
    values = spec_to_dict(load_spec("tiny"))
    assert values["model"]["head_dim"] == 8
    assert values["model"]["mlp_dim"] == 96
    assert values["model"]["decoder"]["kind"] == "autoregressive"
    assert values["model"]["tie_embeddings"] is True
    assert values["training"]["micro_batch_symbols"] == 512
    assert values["evaluation"]["stride_symbols"] == 64
    assert spec_to_dict(load_spec("itchy"))["model"]["tie_embeddings"] is False


def test_later_overrides_win_over_earlier_ones_and_over_the_preset():
    spec = load_spec("tiny", ["training.steps=7", "model.resid_mix=false", "training.steps=9", "name=other"])
    assert (spec.training.steps, spec.model.resid_mix, spec.name) == (9, False, "other")


@pytest.mark.parametrize(
    ("stem", "name"), [("mine", "mine"), ("my spec (2)", "my-spec-2"), (".hidden", "hidden"), ("\u65e5\u672c", "spec")]
)
def test_a_file_takes_its_name_from_the_path(tmp_path: Path, stem: str, name: str):
    path = tmp_path / f"{stem}.toml"
    path.write_bytes(TINY)
    assert load_spec(path) == load_spec("tiny", [f"name={name}"])


@pytest.mark.parametrize("name", ["2024", "2024-01-31", "true", "1e3", "web"])
def test_a_string_needs_no_quotes_in_an_override(name: str):
    assert load_spec("tiny", [f"data.train={name}"]) == load_spec("tiny", [f'data.train="{name}"'])


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError):
        load_spec("tiny").model.num_layers = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.num_layer=4", "tiny: unknown key model.num_layer, did you mean 'num_layers'?"),
        ("model.decoder.heads=2", "unknown key model.decoder.heads, did you mean 'num_heads'?"),
        ("modle.num_layers=4", "unknown key modle, did you mean 'model'?"),
        ("zzz.qqq=4", "tiny: unknown key zzz; allowed here: name, vocabulary, model"),
        ("model.num_layers=0", "tiny: model.num_layers = 0: must be greater than 0"),
        ("model.num_layers=2.5", "model.num_layers = 2.5: must be an integer"),
        ("model.num_layers=many", "model.num_layers = 'many': must be an integer"),
        ("model.patch_size=17", "model.patch_size = 17: must be less than or equal to 16"),
        ("model.patch_size=0", "model.patch_size = 0: must be greater than or equal to 1"),
        (
            "model.decoder.kind=gru",
            "model.decoder.kind = 'gru': must be 'autoregressive', 'mlp', 'linear' or 'experts'",
        ),
        ("training.dtype=float16", "training.dtype = 'float16': must be 'float32' or 'bfloat16'"),
        ("optimizer.matrix_lr=inf", "optimizer.matrix_lr = inf: must be a finite number"),
        ("optimizer.matrix_lr=-1.0", "optimizer.matrix_lr = -1.0: must be greater than or equal to 0"),
        ("training.compile=1", "training.compile = 1: must be true or false"),
        ("training.ema_decay=1.0", "training.ema_decay = 1.0: must be less than 1"),
        ("artifact.matrix.bits=3", "artifact.matrix.bits = 3: must be 4, 5, 6, 7 or 8"),
        ("artifact.embed.trellis=5", "artifact.embed.trellis = 5: must be 0, 4 or 8"),
        ("name=../x", "name = '../x': must be letters, digits, "),
        ("vocabulary.tokenizer=sp", "vocabulary.tokenizer = 'sp': must be SHA-256 of the tokenizer's model"),
        ("data.train=[1]", "data.train = [1]: must be a string"),
        ("model.head_dim=7", "model.head_dim = 7: must be an even number, as RoPE rotates pairs"),
        (
            "model.attention.rope_dims=3",
            "model.attention.rope_dims = 3: must be an even number of at most model.head_dim",
        ),
        (
            "model.attention.rope_dims=10",
            "model.attention.rope_dims = 10: must be an even number of at most model.head",
        ),
        ("model.attention.window=1", "model.attention.window = 1: must be 0 or at least 2"),
        ("model.attention.xsa_layers=4", "model.attention.xsa_layers = 4: must be at most model.num_layers (3)"),
        ("model.attention.value_embed_dim=4", "model.attention.value_embed_layers = 0: must be above 0 exactly if"),
        (
            "model.attention.document_mask=true",
            "document_mask = True: must be false, as vocabulary.kind 'byte256' does",
        ),
        ("model.attention.output_gate=soft", "model.attention.output_gate = 'soft': must be"),
        ("model.attention.gate_dim=3", "unknown key model.attention.gate_dim, did you mean 'gate_dims'?"),
        ("model.num_kv_heads=3", "model.num_kv_heads = 3: must be a divisor of model.num_heads (4)"),
        ("model.num_heads=6", "model.num_heads = 6: must be a divisor of model.model_dim (32)"),
        ("model.seq_len=66", "model.seq_len = 66: must be a multiple of model.patch_size (4)"),
        ("model.decoder.dim=18", "model.decoder.dim = 18: must be a multiple of 2 * model.decoder.num_heads (4)"),
        ("training.batch_symbols=100", "training.batch_symbols = 100: must be a multiple of model.seq_len (64)"),
        ("evaluation.batch_symbols=10", "evaluation.batch_symbols = 10: must be a multiple of model.seq_len (64)"),
        ("evaluation.stride_symbols=65", "evaluation.stride_symbols = 65: must be at most model.seq_len (64)"),
        ("schedule.driver=time", "training.time_limit_s = 0.0: must be above 0 with schedule.driver 'time'"),
        ("training.time_limit_s=5.0", "training.time_limit_s = 5.0: must be above 0 with schedule.driver 'time' and 0"),
        ("artifact.matrix.rounding=two_sided", "rounding = 'two_sided': must be nearest or gptq but for uniform"),
        ("model.steps", "--set 'model.steps': write it as section.key=value"),
        ("model..x=1", "--set 'model..x=1': write it as section.key=value"),
        ("name.first=1", "--set 'name.first=1': 'name' is a value, not a section"),
        ("model=3", "model = 3: must be a section"),
    ],
)
def test_bad_overrides_are_one_clear_line(override: str, expected: str):
    assert expected in error_of("tiny", override)


def test_what_two_layers_share_needs_two():
    residual = "model.attention.value_residual=true"
    assert load_spec("tiny", [residual]).model.attention.value_residual
    expected = "model.attention.value_residual = True: must be false with a single layer"
    assert expected in error_of("tiny", residual, "model.num_layers=1")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["artifact.matrix.rounding=two_sided"], "rounding = 'two_sided': must be nearest or gptq with a trellis"),
        (["training.loss.code_entropy.weight=0.1"], "matrix.trellis = 8: must be 0 with training.loss.code_entropy"),
        (["training.qat.form=straight_through"], "matrix.trellis = 8: must be 0 with training.qat.form"),
    ],
)
def test_a_trellis_is_refused_where_its_path_is_not_known(overrides: list[str], expected: str):
    trellis = ("artifact.matrix.method=uniform", "artifact.matrix.trellis=8")
    assert load_spec("tiny", trellis).artifact.matrix.has_trellis
    assert not load_spec("tiny", trellis[1:]).artifact.matrix.has_trellis
    assert expected in error_of("tiny", *trellis, *overrides)


def test_a_near_match_is_all_that_is_said_of_an_unknown_key():
    assert error_of("tiny", "model.num_layer=4").endswith("did you mean 'num_layers'?")
    assert "did you mean" not in error_of("tiny", "zzz.qqq=4")


def test_tied_head_where_no_table_fits():
    message = error_of("itchy", "model.tie_embeddings=true")
    assert "model.tie_embeddings = True: must be false, unless patch_size is 1" in message


def test_an_unknown_preset_names_the_nearest():
    message = error_of("smok")
    assert f"no preset 'smok', did you mean 'smoke'?; presets: {', '.join(preset_names())}, or a path" in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read the spec (No such file or directory)"),
        (b"[model\n", "not valid TOML ("),
        (b"\xff\xfe\x00", "cannot read the spec (not UTF-8 text)"),
        (
            b"",
            "model.num_layers, model.model_dim, model.num_heads, model.num_kv_heads, model.seq_len, training.steps, "
            "training.batch_symbols are missing: they have no default",
        ),
        (re.sub(rb"(?m)^num_layers = \d+\n", b"", TINY, count=1), "model.num_layers is missing: it has no default"),
    ],
    ids=["missing", "no TOML", "no text", "empty", "a field left out"],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "mine.toml"
    if content is not None:
        path.write_bytes(content)
    assert error_of(str(path)).startswith(f"{path}: {message}")


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from(sorted(OTHER_CHANGES)), st.none(), max_size=8).flatmap(
        lambda keys: st.fixed_dictionaries({key: OTHER_CHANGES[key] for key in keys})
    )
)
def test_toml_round_trip_and_unchanged_identity(changes: dict[str, Any]):
    tiny = load_spec("tiny")
    changed = load_spec("tiny", [f"{key}={toml_value(value)}" for key, value in changes.items()])
    for key, value in changes.items():
        assert fields(changed)[key] == value
    again = spec_from_dict(tomllib.loads(spec_to_toml(changed)))
    assert again == changed and spec_to_dict(again) == spec_to_dict(changed)
    assert spec_id(changed) == spec_id(tiny)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_is_for_and_loads_from_its_own_toml(name: str, tmp_path: Path):
    spec = load_spec(name)
    assert spec.name == name
    assert (PRESETS / f"{name}.toml").read_text(encoding="utf-8").startswith("# ")
    path = tmp_path / f"{name}.toml"
    path.write_text(spec_to_toml(spec), encoding="utf-8")
    assert load_spec(path) == spec


def with_value(section: BaseModel, key: str, value: Any) -> Any:
    """A section with one value changed, valid or not."""
    name, _, inner = key.partition(".")
    return section.model_copy(update={name: with_value(getattr(section, name), inner, value) if inner else value})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_identity_changes_with_every_field_of_model_and_vocabulary_and_no_other() -> None:
    tiny = load_spec("tiny")
    ids = {}
    for key, value in fields(tiny).items():
        other = not value if isinstance(value, bool) else value + ([1] if isinstance(value, list) else type(value)(1))
        ids[key] = spec_id(with_value(tiny, key, other))
    assert {key for key, found in ids.items() if found != spec_id(tiny)} == {
        key for key in ids if key.startswith(("model.", "vocabulary."))
    }
    assert all(re.fullmatch(r"[0-9a-f]{16}", found) for found in ids.values())


def test_identity_is_of_the_resolved_spec():
    assert spec_id(load_spec("tiny", ["model.head_dim=8", "model.mlp_dim=96"])) == spec_id(load_spec("tiny"))
    given = load_spec("tiny", ["model.head_dim=6", "model.mlp_dim=100", "model.tie_embeddings=false"]).model
    assert (given.head_dim, given.mlp_dim, given.tie_embeddings) == (6, 100, False)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.steps=" + "[" * 2000, "nested too deeply"),
        ("training.steps=" + "9" * 5000, "integer that is too long"),
        ("training.steps=" + "b" * 70_000, "must be an integer"),
        ("a." * 3000 + "b=1", "unknown key a"),
        ("model.\x1b[31m\u202e=1", r"unknown key 'model\.\\x1b\[31m\\u202e'"),
        ("model.wings=1", "unknown key model.wings; allowed here: num_layers"),
        ("training.steps=1\nname='x'", "must be an integer"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_overrides_are_one_short_line(override: str, message: str) -> None:
    found = error_of("tiny", override)
    assert re.search(message, found) and len(found) < 500 and found.isprintable()


def test_a_byte_order_mark_before_a_spec_is_no_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TINY)
    assert load_spec(path) == load_spec("tiny", ["name=mine"])


def test_a_spec_is_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    assert "not a regular file" in error_of(str(tmp_path / "pipe.toml"))
