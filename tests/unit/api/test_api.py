"""`import bytetwin`: every function does what its command does, on one run that it trained itself."""

from __future__ import annotations

import inspect
import typing
from pathlib import Path

import numpy as np
import pytest

import bytetwin
from shared.errors import DataError
from shared.runs.finished_run import read_finished
from shared.runs.run_directory import RunDirectory
from shared.tolerances import NATS_ABS
from tests.command_line import CommandLine
from tests.datasets import write_dataset

SETTINGS = [
    "training.steps=4",
    "training.compile=false",
    "evaluation.val_symbols=512",
    "data.train=toy",
    "data.heldout=toy",
]
PROMPT = "document 7"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> typing.Iterator[Path]:
    """A folder of runs with `one` and `two` in it, of two seeds."""
    folder = tmp_path_factory.mktemp("api")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BYTETWIN_DATASETS", str(folder / "datasets"))
        text = [bytes(f"document {index}: the quick brown fox jumps over it\n" * 9, "ascii") for index in range(60)]
        write_dataset(train=text[:45], heldout=text[45:])
        for seed, name in enumerate(("one", "two")):
            spec = bytetwin.load_spec("tiny", [*SETTINGS, f"training.seed={seed}"])
            result = bytetwin.train(spec, engine="torch", run=name, runs_dir=folder / "runs")
            assert result.outcome.status == "finished" and result.finished is not None
        yield folder / "runs"


def test_a_run_is_trained_scored_and_compared_as_by_the_commands(runs: Path, cli: CommandLine) -> None:
    model = bytetwin.load("one", runs_dir=runs)
    assert model.weights_name == "packed" and bytetwin.load(runs / "one" / "artifact.btw").spec == model.spec
    document = bytetwin.score(model)
    stored = read_finished(RunDirectory(runs / "one")).score
    assert document.bpb == stored.bpb and document.engine == "torch"
    told = cli.document("score", "one", "--runs-dir", runs, "--max-symbols", "300", "--engine", "numpy")
    assert bytetwin.score(model, max_symbols=300, engine="numpy").to_dict() == told
    found = bytetwin.compare([runs / "one", read_finished(RunDirectory(runs / "two"))])
    assert found.to_document() == cli.document("compare", runs / "one", runs / "two")


def test_text_is_generated_and_compressed_as_by_the_commands(runs: Path, cli: CommandLine, tmp_path: Path) -> None:
    model = bytetwin.load(runs / "one")
    text = "".join(bytetwin.generate(model, PROMPT, 12, seed=3, engine="numpy"))
    words = ("--prompt", PROMPT, "--bytes", "12", "--seed", "3", "--engine", "numpy")
    assert text == cli.document("generate", runs / "one", *words)["text"]
    assert text == "".join(bytetwin.generate(model, PROMPT.encode(), 12, seed=3, engine="numpy"))
    content = b"document 61: the quick brown fox"
    coded = bytetwin.compress(model, content)
    assert bytetwin.decompress(model, coded) == content
    (tmp_path / "text").write_bytes(content)
    cli.document("compress", tmp_path / "text", "--model", runs / "one")
    assert (tmp_path / "text.btz").read_bytes() == coded
    with pytest.raises(DataError):
        bytetwin.decompress(model, coded[:-1] + bytes([coded[-1] ^ 1]))
    with pytest.raises(bytetwin.UserError, match="only a packed model can code, these are the trained weights"):
        bytetwin.compress(bytetwin.load(runs / "one", weights="trained"), content)


def test_own_text_is_imported_and_its_nats_are_those_of_a_score(runs: Path) -> None:
    model = bytetwin.load(runs / "one")
    text = "document 62: the lazy dog, \u00e9t\u00e9\n" * 20
    result = bytetwin.import_documents("own", iter([text, " "]), heldout_frac=1.0)
    assert result.manifest.splits["heldout"].num_documents == 1 and result.left_out.total() == 1
    assert result.manifest.source == "imported from Python"
    scorer = bytetwin.scorer(model, "torch")
    nats, symbols = bytetwin.nats(scorer, text, stride=24), bytetwin.encode(model, text)
    assert nats.shape == symbols.shape
    assert nats.sum(dtype=np.float64) == pytest.approx(
        bytetwin.score(model, data="own", engine="torch", stride=24).nats, abs=NATS_ABS * len(nats)
    )
    log_probs = bytetwin.log_probs(scorer, text, stride=24)
    assert log_probs.shape == (len(symbols), model.spec.vocabulary.size)
    assert np.abs(nats + log_probs[np.arange(len(symbols)), symbols]).max() <= NATS_ABS
    # Any length, and none at all.
    assert np.abs(bytetwin.nats(model, text[:7]) - nats[:7]).max() <= NATS_ABS
    assert bytetwin.nats(scorer, "").shape == (0,)
    for documents, told in (
        (["one", 2], "document 2: of type int; it must be a string"),
        (["one", "\ud800"], "document 2: not UTF-8"),
        ([], "no documents for the dataset none"),
    ):
        with pytest.raises(bytetwin.UserError, match=told):
            bytetwin.import_documents("none", documents)
    with pytest.raises(bytetwin.UserError, match="own"):
        bytetwin.import_documents("own", [text])


def test_bad_input_is_a_value_error_of_one_line(tmp_path: Path) -> None:
    for call, told in (
        (lambda: bytetwin.load("nothing", runs_dir=tmp_path), "no run named 'nothing'"),
        (lambda: bytetwin.load_spec("smok"), "did you mean 'smoke'"),
        (lambda: bytetwin.load_spec("tiny", ["model.num_layer=3"]), "num_layers"),
        (lambda: bytetwin.train(bytetwin.load_spec("tiny"), engine="jax", runs_dir=tmp_path), "no engine 'jax'"),
        (lambda: bytetwin.compare([]), "no finished run to compare"),
    ):
        with pytest.raises(ValueError, match=told) as found:
            call()
        assert "\n" not in str(found.value)


def test_every_function_is_typed_and_explained() -> None:
    for name in bytetwin.__all__:
        thing = getattr(bytetwin, name)
        assert inspect.getdoc(thing) or name == "__version__", name
        if inspect.isfunction(thing):
            signature = inspect.signature(thing)
            annotations = [one.annotation for one in signature.parameters.values()]
            assert inspect.Parameter.empty not in [*annotations, signature.return_annotation], name
