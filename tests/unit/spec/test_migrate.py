"""Specs in files of earlier versions: renamed fields, changed defaults, ids."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from shared.errors import SpecError
from shared.spec import ModelSpec, Spec, load_spec, read_stored_spec, spec_from_dict, spec_id, spec_to_dict, stored_spec
from shared.spec import load as load_module
from shared.spec import migrate as migrate_module
from shared.spec.migrate import MIGRATIONS, NewDefault, Renamed, migrated, new_name

# Changes that a later version might make, in this order.
LATER = (
    Renamed("model.width", "model.size.dim"),
    NewDefault("model.gate", "off"),
    Renamed("model.gate", "gates.kind"),
    NewDefault("gates.kind", "soft"),
    Renamed("old", "gates.section"),
)


def field(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values[part]
    return values


def without(values: dict[str, Any], key: str) -> dict[str, Any]:
    shorter = copy.deepcopy(values)
    *path, name = key.split(".")
    del (field(shorter, ".".join(path)) if path else shorter)[name]
    return shorter


def test_fields_and_sections_move_in_the_order_in_which_they_did() -> None:
    values = {"name": "x", "model": {"width": 3, "gate": "hard"}, "old": {"a": {"b": 1}}}
    before = copy.deepcopy(values)
    expected = {"name": "x", "model": {"size": {"dim": 3}}, "gates": {"kind": "hard", "section": {"a": {"b": 1}}}}
    assert migrated(values, complete=True, migrations=LATER) == expected
    assert migrated(expected, complete=True, migrations=LATER) == expected
    assert values == before, "the values of the caller are left alone"


def test_a_field_that_a_written_file_lacks_is_older_than_its_first_change() -> None:
    assert migrated({}, complete=True, migrations=LATER) == {"gates": {"kind": "off"}}
    assert migrated({}, complete=False, migrations=LATER) == {}
    assert migrated({"gates": {"kind": "new"}}, complete=False, migrations=LATER) == {"gates": {"kind": "new"}}


def test_a_section_of_which_nothing_is_left_is_no_unknown_key() -> None:
    moved = (Renamed("a.b.c", "d"),)
    assert migrated({"a": {"b": {"c": 1}}}, complete=False, migrations=moved) == {"d": 1}
    assert migrated({"a": {"b": {"c": 1}, "e": 2}}, complete=False, migrations=moved) == {"a": {"e": 2}, "d": 1}


@pytest.mark.parametrize("moved", [Renamed("a.b", "a.c.b"), Renamed("a.c.b", "a.b")])
def test_a_field_moves_into_a_section_beside_it_and_out_again(moved: Renamed) -> None:
    inside, outside = {"a": {"c": {"b": 1, "x": 2}}}, {"a": {"b": 1, "c": {"x": 2}}}
    values, expected = (outside, inside) if moved.old == "a.b" else (inside, outside)
    assert migrated(values, complete=False, migrations=(moved,)) == expected


def test_what_is_no_section_is_left_to_the_schema() -> None:
    for values in ({"model": 3}, {"model": {"width": 3, "size": 4}}):
        assert migrated(values, complete=False, migrations=LATER) == values
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"x": deep}
    assert migrated(deep, complete=True, migrations=LATER)["x"] == deep["x"]


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(SpecError, match=r"^model.width is called model.size.dim now, and both are given: leave out"):
        migrated({"model": {"width": 3, "size": {"dim": 3}}}, complete=False, migrations=LATER)


def test_the_new_name_of_a_key() -> None:
    names = {key: new_name(key, LATER) for key in ("model.width", "model.gate", "old.a", "gates.kind", "model.widths")}
    assert names == {
        "model.width": "model.size.dim",
        "model.gate": "gates.kind",
        "old.a": "gates.section.a",
        "gates.kind": None,
        "model.widths": None,
    }


@pytest.mark.parametrize("entry", MIGRATIONS, ids=str)
def test_every_entry_is_about_a_field_that_exists(entry: Renamed | NewDefault) -> None:
    """A spec with the old name, or without the field, in a file is the one that it was."""
    key = entry.new if isinstance(entry, Renamed) else entry.key
    today = spec_to_dict(load_spec("tiny"))
    key = new_name(key) or key
    older = without(today, key)
    if isinstance(entry, Renamed):
        *path, name = entry.old.split(".")
        section = older
        for part in path:
            section = section.setdefault(part, {})
        section[name] = field(today, key)
        assert spec_to_dict(stored_spec(older, "old")) == today
    else:
        assert field(spec_to_dict(stored_spec(older, "old")), key) is not None
        assert field(spec_to_dict(spec_from_dict(older)), key) != entry.before, "a default that did not change"


@pytest.fixture
def _renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version in which two fields have other names and one another default than before."""
    entries = (
        Renamed("training.length", "training.steps"),
        Renamed("net", "model"),
        NewDefault("optimizer.ns_steps", 7),
    )
    for module, name in ((load_module, "migrated"), (load_module, "new_name")):
        original = getattr(migrate_module, name)
        monkeypatch.setattr(
            module, name, lambda *args, original=original, **more: original(*args, **more, migrations=entries)
        )


@pytest.mark.usefixtures("_renamed")
def test_files_may_have_old_names_and_the_command_line_is_told_the_new_one(tmp_path: Path) -> None:
    values = spec_to_dict(load_spec("tiny"))
    values["net"] = values.pop("model")
    values["training"]["length"] = values["training"].pop("steps")
    del values["optimizer"]["ns_steps"]
    path = tmp_path / "tiny.toml"
    path.write_text(tomli_w.dumps(values))
    assert load_spec(path) == load_spec("tiny") and load_spec(path, ["training.steps=3"]).training.steps == 3
    assert read_stored_spec(path) == stored_spec(values, "x") == load_spec("tiny", ["optimizer.ns_steps=7"])
    with pytest.raises(SpecError, match=r"^--set 'net.num_layers=3': net.num_layers is called model.num_layers now$"):
        load_spec("tiny", ["net.num_layers=3"])
    path.write_text(tomli_w.dumps({**values, "model": values["net"]}))
    with pytest.raises(SpecError, match=rf"^{path}: net is called model now, and both are given"):
        load_spec(path)


def test_a_field_that_is_off_leaves_ids_as_they_are() -> None:
    """The next version's model section has a field more."""

    class NextModel(ModelSpec):
        wings: int = 0

    class NextSpec(Spec):
        model: NextModel

    values = spec_to_dict(load_spec("tiny"))
    assert spec_id(NextSpec.model_validate(values)) == spec_id(load_spec("tiny"))
    winged = {**values, "model": {**values["model"], "wings": 2}}
    assert spec_id(NextSpec.model_validate(winged)) != spec_id(load_spec("tiny"))
