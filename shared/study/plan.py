"""The runs of a sweep: specs x varied fields x seeds, each with its own name."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import UserError
from shared.spec import Spec, load_spec
from shared.spec.difference import SEED_KEY
from shared.spec.idle import idle_notes, without_idle_fields

BRACKETS = {"[": "]", "{": "}"}
# A name of a tried change; the label of a run is the name of its folder, with the seed behind it.
TRIED_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*):\s+")
LONGEST_LABEL = 200
# Runs of a sweep, and seeds of a list given by its length.
MOST_RUNS = 10_000


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep. `label` names the experiment, `name` the run folder: the label and the seed."""

    label: str
    seed: int
    spec: Spec

    @property
    def name(self) -> str:
        return f"{self.label}-seed{self.seed}"


def plan_runs(
    sources: Sequence[str],
    overrides: Sequence[str],
    varied: Sequence[str],
    seeds: Sequence[int],
    tried: Sequence[str] = (),
) -> list[PlannedRun]:
    """Every spec with every combination of the varied `section.key=a,b,c`, as it is and with each of the `tried`
    changes alone (`section.key=value`, several in one separated by spaces, `name:` before them or not), for every seed.

    All experiments of one seed come before those of the next, so that a machine that is slower for a while
    slows all of them. Raises UserError for what cannot be run as asked, before anything is trained.
    """
    changes = [parse_try(word) for word in tried]
    tried_words = itertools.chain.from_iterable(words for _, words in changes)
    if any(word.split("=")[0].strip() == SEED_KEY for word in (*overrides, *varied, *tried_words)):
        raise UserError(f"{SEED_KEY} is given by --seeds, not by --set, --vary or --try")
    choices = [parse_vary(word) for word in varied]
    keys = [key for key, _ in choices]
    if len(set(keys)) < len(keys):
        raise UserError(f"--vary: a field is varied twice: {', '.join(keys)}")
    number = math.prod((len(sources), *(len(values) for _, values in choices), 1 + len(changes), len(seeds)))
    if number > MOST_RUNS:
        raise UserError(f"a sweep of {number:,} runs: at most {MOST_RUNS:,}")
    experiments: dict[str, Spec] = {}
    for source in sources:
        for values in itertools.product(*(values for _, values in choices)):
            combination = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
            for tried_name, change in (("", []), *changes):
                spec = load_spec(source, [*overrides, *combination, *change])
                label = _label(spec.name, combination if tried_name else [*combination, *change], tried_name)
                if label in experiments:
                    raise UserError(
                        f"two experiments would both be called {label!r}; give the specs names of their own"
                    )
                experiments[label] = spec
    effective = {
        label: without_idle_fields(spec.model_copy(update={"name": "any"})) for label, spec in experiments.items()
    }
    for (first, one), (second, other) in itertools.combinations(effective.items(), 2):
        if one == other:
            notes = "; ".join(dict.fromkeys(idle_notes(experiments[first]) + idle_notes(experiments[second])))
            raise UserError(f"{first} and {second} are the same experiment{f': {notes}' if notes else ''}")
    return [
        PlannedRun(label, seed, spec.model_copy(update={"training": spec.training.model_copy(update={"seed": seed})}))
        for seed in seeds
        for label, spec in experiments.items()
    ]


def parse_vary(word: str) -> tuple[str, list[str]]:
    """(`section.key`, values as written) of `section.key=a,b,c`; a comma in brackets or quotes does not separate."""
    key, separator, raw = word.partition("=")
    values = [value.strip() for value in _split(raw)]
    if not separator or not key.strip() or not all(values):
        raise UserError(f"--vary {word!r}: write it as section.key=a,b,c")
    if len(set(values)) < len(values):
        raise UserError(f"--vary {word!r}: a value is given twice")
    return key.strip(), values


def parse_try(word: str) -> tuple[str, list[str]]:
    """(name, `section.key=value` words) of one tried change, written `section.key=value section.key=value` or
    `name: section.key=value`; the name may be empty. A space in brackets or quotes does not separate."""
    named = TRIED_NAME.match(word.strip())
    changes = [part for part in _split(word.strip()[named.end() if named else 0 :], " ") if part]
    if not changes or not all(change.partition("=")[0] and change.partition("=")[2] for change in changes):
        raise UserError(
            f"--try {word!r}: write it as section.key=value, several separated by spaces, a name and ':' before them "
            "or not"
        )
    return named[1] if named else "", changes


def parse_seeds(text: str) -> list[int]:
    """`3` is the three seeds 0, 1, 2; `0,5` is those two; `7,` is the one seed 7."""
    parts = [part.strip() for part in text.split(",")]
    listed = len(parts) > 1
    if listed and not parts[-1]:
        parts.pop()
    if not all(re.fullmatch("[0-9]{1,40}", part) for part in parts):
        raise UserError(f"--seeds {text!r}: a number of seeds, or seeds separated by commas")
    numbers = [int(part) for part in parts]
    if not listed and numbers[0] > MOST_RUNS:
        raise UserError(f"--seeds {text}: at most {MOST_RUNS:,}; a comma makes it one seed")
    seeds = numbers if listed else list(range(numbers[0]))
    if not seeds or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds {text!r}: at least one seed, each once")
    return seeds


def _split(raw: str, separator: str = ",") -> list[str]:
    """The parts between separators that stand outside brackets and quotes."""
    parts, closing, quote = [""], [""], ""
    for character in raw:
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in BRACKETS:
            closing.append(BRACKETS[character])
        elif character == closing[-1]:
            closing.pop()
        elif character == separator and len(closing) == 1:
            parts.append("")
            continue
        parts[-1] += character
    return parts


def _label(name: str, words: Sequence[str], tried_name: str) -> str:
    """The spec's name and what was changed in it, in the letters that a run may be called with.

    Raises UserError if no folder could be called so.
    """
    pairs = [word.partition("=")[::2] for word in words]
    last = [key.rsplit(".", 1)[-1] for key, _ in pairs]
    parts = [name]
    for (key, value), short in zip(pairs, last, strict=True):
        parts.append(f"{short if last.count(short) == 1 else key}-{value}")
    label = re.sub(r"[^A-Za-z0-9._-]+", "_", "-".join([*parts, *([tried_name] if tried_name else [])])).rstrip("_")
    if len(label) > LONGEST_LABEL:
        raise UserError(
            f"a run would be called {label[:40]}...: {len(label)} letters, at most {LONGEST_LABEL}; give the change a "
            "name: --try 'name: section.key=value ...'"
        )
    return label
