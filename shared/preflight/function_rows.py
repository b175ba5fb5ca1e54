"""Rows about the function itself: parity, causality, gradients, parameters."""

from __future__ import annotations

from typing import Any

from shared.engine.flops import scoring_flops
from shared.engine.package import create_engine
from shared.engine.synthetic import synthetic_loader, synthetic_start
from shared.errors import SpecError
from shared.model import parameter_counts, random_weights
from shared.parity import run_parity
from shared.preflight.question import Context
from shared.preflight.row import Row, go, judged, unknown
from shared.preflight.workload import measured_spec, resized
from shared.scoring.audit import check_initial_loss
from shared.scoring.gradient_check import GRADIENT_STEPS, check_spec_gradients
from shared.scoring.isolation import check_isolation
from shared.scoring.leaks import check_leaks
from shared.scoring.order import check_order
from shared.scoring.probe import make_probe, required_positions
from shared.spec import Spec, spec_from_dict, spec_to_dict
from shared.spec.reduced import with_training

PARITY_STEPS = 3
# Weights of a model whose parity check takes seconds: its oracle and its artifact are the CPU's work in any case.
PARITY_WEIGHTS = {"cpu": 2_000_000, "gpu": 4_000_000}
PARITY_SEQ_SYMBOLS = {"cpu": 256, "gpu": 4096}
MIN_LAYERS = 4
# The oracle's float64 copies and several engines' states, per weight.
PARITY_BYTES_PER_WEIGHT = 120

AUDIT_FLOPS = {"cpu": 1e11, "gpu": 1e14}
AUDIT_ROWS, AUDIT_SEED = 4, 0
# Passes over the probe that are always made, in addition to one for each group of disturbed positions.
AUDIT_PASSES = 8
TEXT_SEED = 2


def parity_row(context: Context) -> Row:
    """The check of `bytetwin parity` with few steps, on a narrower and shallower model where the spec's is large."""
    if not _fits(context, PARITY_BYTES_PER_WEIGHT):
        return unknown("parity", "not run: the model does not fit this machine's memory, see row memory")
    kind = context.facts.kind
    spec, changes = shrunken_spec(context.spec, PARITY_WEIGHTS[kind], PARITY_SEQ_SYMBOLS[kind])
    report = run_parity(spec, PARITY_STEPS)
    failed = [row for row in report.rows if not row.passed]
    size = f"smaller model ({', '.join(changes)}), " if changes else "full width and depth, "
    compared = ", ".join(report.implementations)
    how = f"{compared} compared, {size}{PARITY_STEPS} steps in float32; `bytetwin parity` runs all"
    figure = f"{len(report.rows) - len(failed)} of {len(report.rows)} checks agree"
    if failed:
        worst = failed[0]
        figure += f"; {worst.check}, {worst.pair}: {worst.measured:.1e} {worst.unit}, allowed {worst.tolerance:.0e}"
    names = [f"{row.check}, {row.pair}" for row in failed]
    return judged(not failed, "parity", figure, how, failed=names, checks=len(report.rows), changes=list(changes))


def causality_row(context: Context) -> Row:
    """The audit's leak checks through the engine on random weights, and the loss of fresh ones.

    On a GPU they check the function that will be trained, in its dtype and compiled.

    Limits are those of float32 in bfloat16 too. The passes that are compared are of one shape, so the same kernels make
    the same bits of every position that has read the same; and what scores differ by is made in float32 in any case.
    """
    if not _fits(context, PARITY_BYTES_PER_WEIGHT):
        return unknown("causality", "not run: the model does not fit this machine's memory, see row memory")
    seq_len = audit_seq_len(context.spec, AUDIT_FLOPS[context.facts.kind])
    function = context.spec if context.question.as_trained else measured_spec(context.spec, context.facts)
    # Exact, because the row parity multiplied so, and MLX cannot change it within a process.
    changes = {"training.memory_limit_bytes": 0, "training.float32_products": "exact"}
    spec = resized(function, seq_len, AUDIT_ROWS, changes)
    text = synthetic_loader(spec, TEXT_SEED).batch(0).reshape(-1)
    probe = make_probe(spec, text, AUDIT_SEED, AUDIT_ROWS)
    engine = create_engine(context.question.engine, spec)
    engine.initialise(random_weights(spec, AUDIT_SEED))
    checks = [*check_leaks(engine, probe), check_order(engine, probe)]
    if spec.model.attention.document_mask:
        checks.append(check_isolation(engine, probe, AUDIT_SEED))
    engine.initialise(synthetic_start(spec))
    checks.append(check_initial_loss(engine))
    failed = [check for check in checks if not check.passed]
    moved = max(checks[0].measured, checks[1].measured)
    figure = (
        "; ".join(f"{check.name}: {check.detail}" for check in failed)
        or f"no score moves by more than {moved:.1e} nats"
    )
    of = "" if seq_len == context.spec.model.seq_len else f" of the spec's {context.spec.model.seq_len}"
    how = (
        f"{', '.join(check.name for check in checks)} checks of `bytetwin audit` on {context.question.engine}, "
        f"random weights, windows of {seq_len} symbols{of}, {_computed(spec)}"
    )
    if _computed(spec) != _computed(context.spec):
        how += f"; on a GPU, or with --as-trained, {_computed(context.spec)} as in training"
    measured = {check.name: check.measured for check in checks}
    return judged(not failed, "causality", figure, how, failed=[check.name for check in failed], **measured)


def _computed(spec: Spec) -> str:
    """The dtype of a spec's function and whether it is compiled, as text."""
    return f"{spec.training.dtype}, {'compiled' if spec.training.compile else 'uncompiled'}"


def gradients_row(context: Context) -> Row:
    """Whether everything that is trained learns, on a narrower and shallower model where the spec's is large."""
    if not _fits(context, PARITY_BYTES_PER_WEIGHT):
        return unknown("gradients", "not run: the model does not fit this machine's memory, see row memory")
    kind = context.facts.kind
    spec, changes = shrunken_spec(context.spec, PARITY_WEIGHTS[kind], PARITY_SEQ_SYMBOLS[kind])
    # Like the other rows of this process: MLX multiplies in one way for all of them.
    check = check_spec_gradients(with_training(spec, float32_products="exact"), context.question.engine)
    size = f"smaller model ({', '.join(changes)})" if changes else "full width and depth"
    how = f"initial weights and {GRADIENT_STEPS} steps on {context.question.engine}, {size}"
    return judged(check.passed, "gradients", check.detail, how, without=int(check.measured))


def parameters_row(context: Context) -> Row:
    """Weights in all and by optimizer group."""
    counts = parameter_counts(context.spec)
    groups = ", ".join(f"{name} {count:,}" for name, count in counts.items() if name != "total" and count)
    return go("parameters", f"{counts['total']:,}", f"counted from the parameter manifest: {groups}", **counts)


def shrunken_spec(spec: Spec, max_weights: int, max_seq_symbols: int) -> tuple[Spec, tuple[str, ...]]:
    """(the spec with at most about `max_weights` weights and `max_seq_symbols` per window, what was changed).

    First windows and layers are taken away, down to four, then every width is halved while it can be.
    """
    model = spec.model
    seq_len = min(model.seq_len, max(1, max_seq_symbols // model.patch_size) * model.patch_size)
    rows = max(1, spec.training.batch_symbols // seq_len)  # The size of the batch decides by how much rates are cut.
    small = resized(spec, seq_len, rows) if seq_len < model.seq_len else spec
    while parameter_counts(small)["total"] > max_weights:
        smaller = _fewer_layers(small) or _half_as_wide(small)
        if smaller is None:
            break
        small = smaller
    fields = ("num_layers", "model_dim", "mlp_dim", "seq_len")
    changes = [f"{name} {getattr(model, name)} -> {getattr(small.model, name)}" for name in fields]
    return small, tuple(change for change in changes if len({*change.split()[1::2]}) == 2)


def audit_seq_len(spec: Spec, max_flops: float) -> int:
    """The longest window, halved from the spec's while divisible, for which the checks stay within `max_flops`."""
    model = spec.model
    flops_per_symbol = scoring_flops(spec)
    seq_len = model.seq_len
    while seq_len % (2 * model.patch_size) == 0 and seq_len > 4 * model.patch_size:
        if AUDIT_ROWS * seq_len * audit_passes(seq_len, model.patch_size) * flops_per_symbol <= max_flops:
            break
        seq_len //= 2
    return seq_len


def audit_passes(seq_len: int, patch_size: int) -> int:
    """Passes over the probe's rows that the checks of the row causality make at most."""
    return AUDIT_PASSES - (-len(required_positions(seq_len, patch_size)) // AUDIT_ROWS)


def _fits(context: Context, bytes_per_weight: int) -> bool:
    needed = parameter_counts(context.spec)["total"] * bytes_per_weight
    return needed < context.host_free_bytes


def _fewer_layers(spec: Spec) -> Spec | None:
    layers = max(MIN_LAYERS, spec.model.num_layers // 2)
    return _changed(spec, {"num_layers": layers}) if layers < spec.model.num_layers else None


def _half_as_wide(spec: Spec) -> Spec | None:
    """Half of model_dim, head_dim, mlp_dim and the decoder's widths; None where they cannot be halved."""
    model = spec.model
    if model.head_dim % 4 or model.model_dim % 2 or model.model_dim // 2 < model.num_heads:
        return None
    dim, head_dim, attention = model.model_dim // 2, model.head_dim // 2, model.attention
    changes = {
        "model_dim": dim,
        "head_dim": head_dim,
        "mlp_dim": -(-model.mlp_dim // 2),
        "mlp_dims": [-(-width // 2) for width in model.mlp_dims],
        "embed_rank": min(model.embed_rank, max(1, model.embed_rank // 2)),
        "attention": {"rope_dims": min(attention.rope_dims, head_dim), "gate_dims": min(attention.gate_dims, dim)},
    }
    decoder = {"dim": max(1, model.decoder.dim // 2), "mlp_dim": -(-model.decoder.mlp_dim // 2)}
    return _changed(spec, {**changes, "decoder": decoder}) or _changed(spec, changes)


def _changed(spec: Spec, changes: dict[str, Any]) -> Spec | None:
    """The spec with other fields of its model section, a mapping being fields of a section inside it; None if the
    result is not a valid spec."""
    values = spec_to_dict(spec)
    for name, change in changes.items():
        values["model"][name] = values["model"][name] | change if isinstance(change, dict) else change
    try:
        return spec_from_dict(values, origin=spec.name)
    except SpecError:
        return None
