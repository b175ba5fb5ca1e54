"""`bytetwin spec`: the resolved spec with its parameter counts, the list of presets, the JSON Schema.

What it prints on stdout can be used as it is: the resolved spec is valid TOML (the counts are comments),
the schema is JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import sys
import textwrap
from typing import Any

from shared.cli.command import CommandResult, add_set_argument
from shared.errors import SpecError
from shared.model import auxiliary_parameters, parameter_counts
from shared.spec import Spec, json_schema, load_spec, preset_names, spec_id, spec_to_dict, spec_to_toml
from shared.spec.idle import idle_notes
from shared.spec.load import PRESETS


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("spec", metavar="SPEC", nargs="?", help="preset name or path to a .toml file")
    add_set_argument(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--schema", action="store_true", help="print the JSON Schema of a spec file")
    other.add_argument("--list", action="store_true", dest="list_presets", help="list the presets")


def run(args: argparse.Namespace) -> CommandResult:
    """Print one of the three on stdout; raises SpecError for bad input."""
    if args.schema:
        schema = json_schema()
        return _shown(args, json.dumps(schema, indent=2), schema)
    if args.list_presets:
        presets = {name: preset_description(name) for name in preset_names()}
        width = max(map(len, presets))
        text = "\n".join(_entry(f"{name:{width}}  ", description) for name, description in presets.items())
        return _shown(args, text, {"presets": presets})
    if args.spec is None:
        raise SpecError(f"SPEC is missing; presets: {', '.join(preset_names())}, or a path to a .toml file")
    spec = load_spec(args.spec, args.overrides)
    document = {
        "spec": spec_to_dict(spec),
        "spec_id": spec_id(spec),
        "parameters": parameter_counts(spec),
        "training_only_parameters": training_only_count(spec),
    }
    return _shown(args, spec_text(spec), document)


def spec_text(spec: Spec) -> str:
    """The resolved spec as TOML under a comment with spec_id, parameter counts, window sizes and what has no effect."""
    counts = parameter_counts(spec)
    width = max(map(len, counts))
    lines = [f"# {spec.name}: spec_id {spec_id(spec)}", "# parameters"]
    lines += [f"#   {group:{width}} {count:>12,}" for group, count in counts.items() if count]
    if only := training_only_count(spec):
        lines.append(f"# {only:,} more in training only: neither counted nor packed nor read by a score")
    lines.append(
        f"# window {spec.model.seq_len:,} symbols = {spec.model.num_patches:,} patches of {spec.model.patch_size}; "
        f"batch {spec.training.batch_symbols:,} symbols"
    )
    lines += [f"# {note}" for note in idle_notes(spec)]
    return "\n".join(lines) + "\n\n" + spec_to_toml(spec).rstrip()


def training_only_count(spec: Spec) -> int:
    """Number of weights of auxiliary losses, which are not part of the model."""
    return sum(parameter.count for parameter in auxiliary_parameters(spec))


def preset_description(name: str) -> str:
    """The first sentence of the comment that opens a preset's file."""
    lines = (PRESETS / f"{name}.toml").read_text(encoding="utf-8").splitlines()
    comment = itertools.takewhile(lambda line: line.startswith("#"), lines)
    sentence = " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0]
    return sentence.removesuffix(".") + "."


def _entry(name: str, text: str) -> str:
    """A name and what is said of it, in the lines that a terminal has room for."""
    if not sys.stdout.isatty():
        return name + text
    columns = max(shutil.get_terminal_size().columns, 2 * len(name))
    return textwrap.fill(text, columns, initial_indent=name, subsequent_indent=" " * len(name))


def _shown(args: argparse.Namespace, text: str, document: dict[str, Any]) -> CommandResult:
    """Print the text, unless --json asks for the document alone."""
    if not args.json:
        print(text)
    return CommandResult(document)
