"""Random whole specs for `tests.fuzz.chain`: the models and losses of the parity tests, and all other sections."""

from __future__ import annotations

from typing import Any

import tomli_w
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from shared.spec import Spec, spec_to_dict
from tests.parity import test_random_optimizers as optimizers
from tests.parity import test_random_specs as models

# Tokens of the golden tokenizer.
GOLDEN_TOKENS = 320
Values = dict[str, Any]


def draw_of(strategy: st.SearchStrategy[Any], number: int) -> Any:
    """What a strategy gives for a seed."""
    found: list[Any] = []

    # The first example is always the simplest one.
    @settings(max_examples=2, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @seed(number)
    @given(strategy)
    def take(value: Any) -> None:
        found.append(value)

    take()
    return found[-1]


@st.composite
def quantisers(draw: st.DrawFn, readable: bool) -> Values:
    """Any storage of a tensor; `readable`: one that a training loss can read."""
    values: Values = {
        "method": draw(
            st.sampled_from(["row_max", "sd_clip", "ternary", "uniform"] + ["clip_search"] * (not readable))
        ),
        "bits": draw(st.integers(4, 8)),
        "rounding": draw(st.sampled_from(["nearest", "nearest", "gptq"])),
        "step": draw(st.sampled_from([0.05, 0.2, 1.0])),
        "group": draw(st.sampled_from([1, 5, 128])),
        "lqer_rank": draw(st.sampled_from([0, 0, 2])),
    }
    if values["method"] == "sd_clip":
        values["clip_sd"] = draw(st.sampled_from([3.0, 12.85]))
        values["hessian_clip"] = 0.0 if readable else draw(st.sampled_from([0.0, 0.5]))
    if values["method"] == "uniform" and not readable:
        if draw(st.booleans()):
            values["rounding"], values["step_unit"] = "two_sided", draw(st.sampled_from(["rms", "loss"]))
        else:
            values["trellis"] = draw(st.sampled_from([0, 4, 8]))
    return values


@st.composite
def artifacts(draw: st.DrawFn, readable: bool = False) -> Values:
    """An artifact section."""
    patterns = st.sampled_from(["*", "layers.*", "*mlp*", "embed*", "layers.?.attn.q_proj.weight"])
    rules = draw(st.lists(st.tuples(patterns, quantisers(readable)), max_size=2)) if draw(st.booleans()) else []
    sections = {name: draw(quantisers(readable or name != "matrix")) for name in ("matrix", "embed", "head")}
    needed = [*sections.values(), *(rule for _, rule in rules)]
    calibrated = any(each["rounding"] != "nearest" or each.get("hessian_clip") for each in needed)
    return {
        **sections,
        "tensors": [{"pattern": pattern, **rule} for pattern, rule in rules],
        "lqer_tensors": draw(st.integers(0, 3)),
        "codec": draw(st.sampled_from(["brotli", "range"])),
        "logits": draw(st.sampled_from(["none", "none", "temperature", "temperature_bias"])),
        "brotli_quality": draw(st.sampled_from([0, 5, 11])),
        "brotli_window": draw(st.sampled_from([10, 24])),
        "calibration": {
            "source": draw(st.sampled_from(["self_generated", "train"] + ["none"] * (not calibrated))),
            "windows": draw(st.integers(1, 5)),
            "window_symbols": draw(st.sampled_from([1, 16, 64])),
            "seed": draw(st.integers(0, 9)),
        },
    }


@st.composite
def adaptations(draw: st.DrawFn, seq_len: int, mixers: list[str]) -> Values:
    """How a score learns; seven of eight draws do not."""
    if draw(st.integers(0, 7)):
        return {}
    if draw(st.integers(0, 5)) == 0:
        return draw(st.sampled_from(["online", "pr549", "document_lora"]))
    document = draw(st.booleans())
    optimizer = draw(st.sampled_from(["adam", "sgd"] if document else ["adam", "sgd", "muon"]))
    values: Values = {
        "kind": "document" if document else "score_first",
        "chunk_symbols": draw(st.sampled_from([seq_len + 40, 100, 300])),
        "epochs": draw(st.integers(1, 2)),
        "batch_symbols": draw(st.sampled_from([64, 65_536])),
        "optimizer": optimizer,
        "rate": draw(st.sampled_from([1e-4, 1e-2])),
        "beta1": draw(st.sampled_from([0.0, 0.9])),
        "weight_decay": 0.0 if optimizer == "sgd" else draw(st.sampled_from([0.0, 0.1])),
        "parameters": draw(st.sampled_from([["*"], ["layers.*"], ["*mlp*"]])),
    }
    if document or (optimizer != "muon" and draw(st.booleans())):
        targets = ["o", "mlp"] if set(mixers) == {"mamba2"} else ["q", "v", "o", "mlp", "k"]
        chosen = draw(st.lists(st.sampled_from(targets), min_size=1, unique=True))
        values["lora"] = {"rank": draw(st.integers(1, 4)), "alpha": 4.0, "targets": chosen}
        values["parameters"] = ["*"]
    if document:
        phases = {"count": draw(st.integers(0, 2)), "documents": draw(st.integers(1, 9)), "rate": 1e-3}
        return {**values, "documents": draw(st.integers(1, 5)), "warm_start": draw(st.booleans()), "phases": phases}
    return {
        **values,
        "rate_shape": draw(st.sampled_from(["constant", "cosine"])),
        "clip_norm": draw(st.sampled_from([0.0, 0.5])),
        "reset": draw(st.sampled_from(["never", "document"])),
    }


@st.composite
def lengths(draw: st.DrawFn, seq_len: int) -> Values:
    """Steps, batches, averages and cadence of a training section."""
    steps, rows = draw(st.integers(2, 6)), draw(st.sampled_from([1, 2, 4, 6]))
    every = draw(st.integers(0, 2))
    return {
        "seed": draw(st.integers(0, 99)),
        "steps": steps,
        "batch_symbols": rows * seq_len,
        "micro_batch_symbols": draw(st.sampled_from([rows * seq_len, seq_len])),
        "dtype": draw(st.sampled_from(["float32"] * 7 + ["bfloat16"])),
        "ema_decay": draw(st.sampled_from([0.0, 0.5])),
        "swa_every_steps": min(every, steps),
        "swa_start_frac": 0.0,
        "swa_share": 0.25,
        "log_every_steps": 1,
        "val_every_steps": draw(st.integers(0, 3)),
        "checkpoint_every_steps": draw(st.integers(0, 2)),
        "keep_checkpoints": draw(st.integers(1, 3)),
        "parameters": draw(st.sampled_from([["*"]] * 5 + [["*e*"]])),
    }


@st.composite
def loop_schedules(draw: st.DrawFn, loop: Values, steps: int) -> Values:
    """When the loops of a model run."""
    extra = loop["extra_loops"]
    if not extra:
        return {}
    values: Values = {"start_step": draw(st.integers(0, steps - extra)), "stagger_steps": draw(st.integers(0, 1))}
    if loop["gates"] and not (values["stagger_steps"] and extra > 1):
        values["ramp_steps"] = draw(st.integers(0, 3))
    return values


@st.composite
def chains(draw: st.DrawFn) -> Values:
    """The values of a whole spec that every command of a chain should take."""
    drawn: Spec = draw(models.specs())
    values, other = spec_to_dict(drawn), spec_to_dict(draw(optimizers.specs()))
    model, training, vocabulary = values["model"], values["training"], values["vocabulary"]
    seq_len, marked = model["seq_len"], vocabulary["kind"] != "byte256"
    if vocabulary["kind"] == "tokens":
        vocabulary["vocab_size"] = GOLDEN_TOKENS
    text = "golden-tokens" if vocabulary["kind"] == "tokens" else draw(st.sampled_from(["golden", "prose"]))
    straight = training["qat"]["form"] == "straight_through"
    artifact = draw(artifacts(straight or training["loss"]["code_entropy"]["weight"] > 0))
    training |= draw(lengths(seq_len))
    if not (model["tie_embeddings"] or "head" in model["lora"]["targets"]):
        # A head of zeros stays one where it is frozen, and nothing is learnt.
        training["freeze"] = "none"
    if training["freeze"] == "base":
        training["parameters"] = ["*"]
    training["qat"]["bits"] = artifact["matrix"]["bits"] if straight else training["qat"]["bits"]
    if training["qat"]["form"] != "off":
        training["qat"]["start_step"] = draw(st.integers(0, training["steps"] - 1))
    schedule = {**other["schedule"], "loop": draw(loop_schedules(model["loop"], training["steps"]))}
    stride = draw(st.sampled_from([seq_len, draw(st.integers(1, seq_len))]))
    assert marked or model["start"] == "learned"
    values = {
        **values,
        "name": "chain",
        "optimizer": other["optimizer"],
        "schedule": schedule,
        "data": {
            "train": text,
            "heldout": text if vocabulary["kind"] == "tokens" else draw(st.sampled_from(["golden", text])),
            "selection_frac": draw(st.sampled_from([0.0, 0.0, 0.2])),
        },
        "training": training,
        "artifact": artifact,
        "evaluation": {
            "stride_symbols": stride,
            "val_symbols": draw(st.sampled_from([seq_len, 200, 4096])),
            "batch_symbols": seq_len * draw(st.sampled_from([1, 7, 64])),
            "confidence": draw(st.sampled_from([0.9, 0.95])),
            "adaptation": draw(adaptations(seq_len, model["mixers"])),
        },
    }
    if draw(st.integers(0, 7)) == 7:
        # By the clock, which nothing that is counted in steps goes with.
        schedule |= {"driver": "time", "loop": {"start_frac": 0.3} if model["loop"]["extra_loops"] else {}}
        training |= {"time_limit_s": 60.0, "reserve_s": 20.0}
        training["qat"] |= {"start_step": 0}
    return values


def to_toml(values: Values) -> str:
    """As a file."""
    return tomli_w.dumps(values)


def settings_words(values: Values) -> list[str]:
    """An artifact section as words for `pack`."""
    return [word for name, value in values.items() for word in ("--set", f"artifact.{name}={inline(value)}")]


def inline(value: Any) -> str:
    """A value of TOML in one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name} = {inline(each)}" for name, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return tomli_w.dumps({"value": value}).partition("=")[2].strip()
