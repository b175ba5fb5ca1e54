"""The model card of an export, written from the run's own files: what was measured, and what was not."""

from __future__ import annotations

from shared.errors import RunError
from shared.model import parameter_counts
from shared.runs.metrics import last_ending, read_events
from shared.runs.run_directory import RunDirectory
from shared.runs.target import Target
from shared.scoring.document import ScoreDocument, read_score
from shared.spec import Spec, spec_id
from shared.units import counted

LIBRARIES = {"safetensors": "safetensors", "hf": "transformers", "mlx": "mlx"}
USE = {
    "safetensors": """```python
from safetensors.numpy import load_file

weights = load_file("model.safetensors")  # float32 by name, [out, in]; config.json has the spec
```""",
    "hf": """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(FOLDER, trust_remote_code=True)
print(tokenizer.decode(model.generate(**tokenizer("Once upon a time", return_tensors="pt"), max_new_tokens=64)[0]))
```

It needs transformers, torch and pydantic (and sentencepiece for tokens). `modeling_bytetwin.py` has the forward pass of
bytetwin in it as plain text: read it before you trust it. Logits are log-probabilities of the next symbol; the symbol
`bos_token_id` stands for the start of a window and may stand in front of a row.

`lm_eval --model hf --model_args pretrained=FOLDER,trust_remote_code=True --tasks TASK` (`pip install "lm_eval[hf]"`)
scores a text of up to one window ({window:,} symbols) as bytetwin does, to rounding. A longer one lm-eval cuts in
another way: each later window begins with one symbol of context, where bytetwin's begins with none, so the figures
differ a little.""",
    "mlx": """```
pip install mlx numpy pydantic
python model.py --prompt "Once upon a time"
```

or `from model import load; model = load(); model(x)`: log-probabilities of every x[:, t] given x[:, :t]. `model.py` has
the forward pass of bytetwin in it as plain text. A model of tokens needs sentencepiece too.""",
}


def model_card(target: Target, form: str) -> str:
    """README.md of an export. Raises RunError if the run's score cannot be read."""
    spec, counts = target.spec, parameter_counts(target.spec)
    head = [
        "---",
        f"library_name: {LIBRARIES[form]}",
        "pipeline_tag: text-generation",
        "tags:",
        "- bytetwin",
        "---",
        "",
    ]
    lines = [*head, f"# {spec.name}", "", _what_it_is(spec, counts["total"]), "", "## Score", ""]
    score, why_not = own_score(target)
    lines += _score_lines(score) if score is not None else [f"No score belongs to these weights: {why_not}."]
    lines += [
        "",
        "## Training",
        "",
        *_training_lines(target),
        "",
        "## Use",
        "",
        USE[form].format(window=spec.model.seq_len),
    ]
    lines += ["", "## Files", "", "The weights are float32 under bytetwin's names, `[out, in]`. " + _origin(target)]
    lines += ["", "No licence is stated here: that is for whoever publishes the weights.", ""]
    return "\n".join(lines)


def own_score(target: Target) -> tuple[ScoreDocument | None, str]:
    """(score.json of the run if it is of the very weights of the target, why not)."""
    if target.run is None:
        return None, "an artifact file does not carry one; export the run to have it here"
    if target.weights_name != "packed":
        return None, f"they are the {target.weights_name} weights, and a run is scored with its packed ones"
    if not target.run.score_path.is_file():
        return None, "the run was not scored"
    score = read_score(target.run.score_path)
    same_hash = score.artifact_sha256 in (None, target.artifact_sha256)
    if not same_hash or score.artifact_bytes != target.artifact_bytes:
        return None, "score.json of the run is of another artifact"
    return score, ""


def _what_it_is(spec: Spec, parameters: int) -> str:
    model, vocabulary = spec.model, spec.vocabulary
    symbols = f"{vocabulary.size:,} tokens" if vocabulary.reads_tokens else "bytes"
    reads = f"{symbols}, {model.patch_size} at a time" if model.patch_size > 1 else symbols
    return (
        f"A language model over {reads}: {parameters:,} parameters, {model.num_layers} layers of {model.model_dim}, "
        f"windows of {model.seq_len:,} symbols. Made with bytetwin to fit {spec.budget.total_bytes:,} bytes of code "
        "and weights. It is small, has had no instruction tuning and no safety training, and what it writes is not to "
        "be relied on."
    )


def _score_lines(score: ScoreDocument) -> list[str]:
    confidence, dataset = score.confidence, score.dataset
    lines = [f"**{score.bpb:.4f} bits per byte** on held-out text of {dataset.name}.", ""]
    if score.problems:
        lines += ["**This score does not count:**", "", *(f"- {problem}" for problem in score.problems), ""]
    whole = "all of it" if dataset.complete else "a fixed sample of its documents"
    lines += [
        f"- {confidence.text}. It is over documents: it does not say how runs with other seeds differ.",
        f"- Text: {counted(score.bytes, 'byte')} in {counted(score.documents, 'document')}, {whole}; "
        f"sha256 `{dataset.text_sha256}`.",
        f"- Protocol: {counted(score.symbols, 'symbol')}, each once, {score.windows_text}; "
        f"{score.nats:.3f} nats in all.",
        f"- Scored: the {score.weights} weights, with {score.engine}. "
        + (f"{score.artifact_bytes:,} bytes of artifact" if score.artifact_bytes is not None else "Not packed")
        + f" and {score.code_bytes:,} of code, of {score.limit_bytes:,}.",
    ]
    if score.adaptation != "none":
        lines.append(
            "- The model learnt from the text that it had scored: these weights alone do not reach this figure."
        )
    if score.chosen is not None:
        lines.append(f"- Chosen: {score.chosen}.")
    for name, result in score.compressors.items():
        lines.append(f"- {name} on the same text: {result.bpb:.4f} bits per byte.")
    lines += ["", "| audit | result | what was measured |", "|---|---|---|"]
    for check in score.audit.checks:
        verdict = "FAILED" if not check.passed else "warning" if check.warning else "passed"
        detail = check.detail.replace("|", "\\|")
        lines.append(f"| {check.name} | {verdict} | {detail} |")
    return lines


def _training_lines(target: Target) -> list[str]:
    if target.run is None:
        return [f"- On `{target.spec.data.train}`, as the spec in config.json says; an artifact knows no more."]
    run = target.run
    lines = [*_text_lines(run), f"- Spec `{target.spec.name}` ({spec_id(target.spec)}), in config.json."]
    steps = [event for event in read_events(run.metrics_path) if event["event"] == "step"]
    if steps:
        last, training = steps[-1], target.spec.training
        seconds = f" in {last['elapsed_s']:,.0f} s" if "elapsed_s" in last else ""
        lines.append(f"- {last['step']:,} steps of {training.batch_symbols:,} symbols{seconds}, seed {training.seed}.")
    if last_ending(read_events(run.metrics_path)) is None:
        lines.append("- The run was not finished when this was exported.")
    return lines


def _text_lines(run: RunDirectory) -> list[str]:
    try:
        environment = run.read_environment()
    except RunError:
        return ["- The run does not say what it was trained on."]
    train = environment.get("data", {}).get("train", {})
    text = f"- On `{train.get('name', 'unknown text')}`, sha256 `{train.get('sha256', 'unknown')}`"
    return [
        f"{text}, with {environment.get('engine', 'an engine')} on {environment.get('device', 'an unknown device')}."
    ]


def _origin(target: Target) -> str:
    if target.artifact_sha256 is not None:
        return f"They are those that the artifact with sha256 `{target.artifact_sha256}` unpacks to."
    return f"They are the {target.weights_name} weights of a checkpoint at step {target.step}."
