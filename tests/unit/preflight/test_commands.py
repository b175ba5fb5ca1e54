"""`bytetwin preflight` from the command line: what it passes, and the rows that say no."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.datasets import load_manifest
from shared.artifact.budget import code_bytes
from shared.artifact.predict import predict_artifact_bytes
from shared.cli.main import main
from shared.engine.device_facts import peak_resident_bytes
from shared.engine.package import create_engine, engine_package
from shared.engine.registry import ENGINES
from shared.model import parameter_counts
from shared.ops import Array, Ops
from shared.optim import state_bytes
from shared.preflight import ROWS, Row, ask_rows
from shared.preflight import function_rows as functions
from shared.preflight.measure import StepFailure, measure_here
from shared.preflight.question import Context
from shared.preflight.row import VERDICTS, go
from shared.spec import Spec
from shared.training.sources import open_sources
from tests.datasets import write_dataset
from tests.fake_training import tiny_spec

pytestmark = pytest.mark.slow

GIB = 1 << 30
DOCUMENTS = [
    f"document {index} of a text that is long enough to be cut into windows\n".encode() for index in range(600)
]
TOY = ["--set", "training.compile=false", "--set", "data.train=toy", "--set", "data.heldout=toy"]


def toy_spec(*overrides: str) -> Spec:
    """The spec of TOY."""
    return tiny_spec("data.train=toy", "data.heldout=toy", *overrides)


def toy_code_bytes() -> int:
    """The code of TOY with another budget of six digits."""
    return code_bytes("torch", toy_spec("budget.total_bytes=100000"))


every_engine = pytest.mark.parametrize("engine", list(ENGINES))

# Rows that say something of the measured step.
READ_THE_STEP = {"memory", "step_time", "evaluation_time", "mfu", "cost", "projected_score"}


@pytest.fixture(autouse=True)
def dataset(datasets: Path) -> Path:
    """A dataset `toy`, in several shards, that every command line here trains on."""
    other = b"other text that is not trained on, long enough for a window of a small model\n"
    return write_dataset(train=DOCUMENTS, heldout=[other], max_shard_symbols=20_000)


Rows = dict[str, dict[str, Any]]


class Preflight:
    """`bytetwin preflight tiny` on the dataset `toy`."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def only(self, *names: str) -> None:
        """Leave out all rows but the named ones. A step is measured only for those that read it, and in this process,
        as that is faster."""
        for name in ROWS.keys() - set(names):
            self.monkeypatch.setitem(ask_rows.ASKED, name, lambda context, name=name: go(name, "", "left out"))
        measure = measure_here if READ_THE_STEP & set(names) else lambda *asked: StepFailure("left out", False)
        self.monkeypatch.setattr(ask_rows, "measure_step", measure)

    def __call__(self, *words: object, engine: str = "torch") -> tuple[int, dict[str, Any], Rows]:
        """(status, document, rows by name) of a command line."""
        status = main(["preflight", "tiny", "--json", "--engine", engine, *TOY, *map(str, words)])
        document = json.loads(self.capsys.readouterr().out)
        rows = {row["name"]: row for row in document["rows"]}
        assert list(rows) == list(ROWS)
        assert document["go"] == (status == 0)
        assert document["counts"] == {verdict: len(said(rows, verdict)) for verdict in VERDICTS}
        return status, document, rows

    def refuses(self, names: list[str], *words: object, engine: str = "torch") -> Rows:
        """The rows of a command line, of which these and no other are a no-go; so is the whole then."""
        status, _, rows = self(*words, engine=engine)
        assert (status, said(rows, "no-go")) == (1 if names else 0, names)
        return rows


@pytest.fixture
def preflight(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Preflight:
    return Preflight(capsys, monkeypatch)


def said(rows: Rows, verdict: str) -> list[str]:
    return [name for name, row in rows.items() if row["verdict"] == verdict]


def test_a_good_spec_passes_every_row(tmp_path: Path, preflight: Preflight) -> None:
    fit = tmp_path / "fit.json"
    fit.write_text('{"c": 1.0, "a": 3.0, "alpha": 0.1, "points": 7}')
    record = tmp_path / "preflight.json"
    words = ("--price", "3", "--fit", fit, "--output", record, "--runs-dir", tmp_path / "runs")
    status, document, rows = preflight(*words)
    assert status == 0, [row for row in rows.values() if row["verdict"] == "no-go"]
    verdicts = {name: row["verdict"] for name, row in rows.items()}
    on_gpu = engine_package("torch").device_facts().kind == "gpu"
    assert verdicts == dict.fromkeys(ROWS, "go") | {"driver": "go" if on_gpu else "unknown"}
    assert all(row["how"] for row in rows.values())
    assert json.loads(record.read_text()) == document
    assert not (tmp_path / "runs").exists()
    seen = 60 * 512
    assert rows["step_time"]["values"]["symbols"] == rows["enough_data"]["values"]["seen_symbols"] == seen
    assert rows["projected_score"]["values"]["bpb"] == pytest.approx(1.0 + 3.0 * seen**-0.1)
    assert rows["parameters"]["values"]["total"] == parameter_counts(tiny_spec())["total"]
    assert 0 < rows["mfu"]["values"]["mfu"] < 1
    assert rows["memory"]["values"]["peak_bytes"] > state_bytes(tiny_spec())
    assert rows["shards"]["values"]["files"] == rows["shards"]["values"]["hashed"] >= 4
    assert document["forced"] == [] and document["spec"]["name"] == "tiny"
    given = [row["artifact_bytes"] for row in document["sizes"]["shapes"] if row["shape"].endswith("as given")]
    expected = rows["artifact_bytes"]["values"]["expected_bytes"]
    assert document["sizes"]["fits"] and given[0]["as given"] == pytest.approx(expected, rel=0.001)


@pytest.mark.parametrize(("over", "expected"), [(1.01, ["artifact_bytes"]), (0.99, [])])
def test_one_percent_over_budget(over: float, expected: list[str], preflight: Preflight) -> None:
    preflight.only("artifact_bytes", "code_bytes")
    limit = int((predict_artifact_bytes(toy_spec()).expected_bytes + toy_code_bytes()) / over)
    rows = preflight.refuses(expected, "--set", f"budget.total_bytes={limit}")
    spec = toy_spec(f"budget.total_bytes={limit}")
    total = predict_artifact_bytes(spec).expected_bytes + code_bytes("torch", spec)
    assert rows["artifact_bytes"]["values"]["total_bytes"] == total
    assert "over the limit: " in rows["artifact_bytes"]["how"] or not expected


def test_a_size_whose_own_high_estimate_is_over_budget_is_a_risk(preflight: Preflight) -> None:
    """It is told and forbids nothing; --strict refuses it, --force lets it pass again."""
    preflight.only("artifact_bytes")
    prediction = predict_artifact_bytes(toy_spec())
    between = (prediction.expected_bytes + prediction.high_bytes) // 2 + toy_code_bytes()
    words = ("--set", f"budget.total_bytes={between}")
    for more, status, ending in (
        ((), 0, "GO; risk: artifact_bytes; "),
        (("--strict",), 1, "NO-GO: artifact_bytes; risk: artifact_bytes (refused by --strict); "),
        (("--strict", "--force", "artifact_bytes"), 0, "GO; forced: artifact_bytes; "),
    ):
        assert preflight(*words, *more)[0] == status
        main(["preflight", "tiny", "--engine", "torch", *TOY, *words, *more])
        table = preflight.capsys.readouterr().out
        assert f"\n{ending}" in table
        assert table.index("artifact_bytes") < table.index("layers x width") < table.index(ending)
    status, document, rows = preflight(*words)
    assert status == 0 and said(rows, "risk") == document["risks"] == ["artifact_bytes"]
    assert "over the limit: high estimate by" in rows["artifact_bytes"]["how"]
    fits = prediction.high_bytes + toy_code_bytes() + 100
    assert said(preflight("--strict", "--set", f"budget.total_bytes={fits}")[2], "risk") == []


def test_code_alone_over_budget(preflight: Preflight) -> None:
    preflight.only("artifact_bytes", "code_bytes")
    preflight.refuses(["artifact_bytes", "code_bytes"], "--set", "budget.total_bytes=1000")


def leaky_embed_patches(ops: Ops, spec: Spec, params: Mapping[str, Array], x: Array) -> Array:
    """The trunk's inputs one patch too early: row i has read patch i."""
    from shared.model.embedding import embed_patches

    patch = spec.model.patch_size
    return embed_patches(ops, spec, params, ops.concatenate([x[:, patch:], x[:, :patch]], axis=1))


@every_engine
def test_a_leak_planted_in_the_model(engine: str, preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the one forward pass of both engines and the oracle, as a wrong edit would be."""
    preflight.only("causality")
    monkeypatch.setattr(sys.modules["shared.model.forward"], "embed_patches", leaky_embed_patches)
    rows = preflight.refuses(["causality"], engine=engine)
    assert {"future", "target"} <= set(rows["causality"]["values"]["failed"])
    assert "when symbol" in rows["causality"]["figure"]


def test_engines_that_differ_are_refused(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    """RoPE turned the other way in one engine, which is how the public pair of scripts differs."""
    from cuda_train.plain_ops import TorchOps

    preflight.only("parity")
    rope = TorchOps.rope
    monkeypatch.setattr(TorchOps, "rope", lambda self, x, base: rope(self, x.flip(1), base).flip(1))
    rows = preflight.refuses(["parity"])
    assert any("logits" in check for check in rows["parity"]["values"]["failed"])


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [(Path.unlink, "missing"), (cut, "bytes; the manifest says"), (flip, "SHA-256")],
    ids=["missing", "truncated", "changed"],
)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_a_damaged_shard(
    damage: Callable[[Path], None], problem: str, split: str, dataset: Path, preflight: Preflight
) -> None:
    preflight.only("shards", "enough_data")
    path = dataset / load_manifest("toy").splits[split].shards[-1].file  # type: ignore[index]
    damage(path)
    rows = preflight.refuses(["shards"])
    assert str(path) in rows["shards"]["how"] and problem in rows["shards"]["how"]
    forced, document, rows = preflight("--force", "shards")
    assert forced == 0 and document["forced"] == ["shards"]
    assert rows["shards"]["verdict"] == "no-go" and rows["shards"]["forced"]


def test_quick_checks_sizes_alone_and_says_so(dataset: Path, preflight: Preflight) -> None:
    preflight.only("shards")
    flip(dataset / load_manifest("toy").splits["train"].shards[0].file)
    status, _, rows = preflight("--quick")
    assert status == 0 and rows["shards"]["values"]["hashed"] == 0
    assert "by size alone (--quick" in rows["shards"]["how"]


def test_no_such_dataset(preflight: Preflight) -> None:
    preflight.only("shards", "enough_data")
    rows = preflight.refuses(["shards"], "--set", "data.train=elsewhere")
    assert "no dataset 'elsewhere'" in rows["shards"]["how"]
    assert rows["enough_data"]["verdict"] == "unknown"


def test_held_out_text_that_is_trained_on(preflight: Preflight) -> None:
    write_dataset("leaky", heldout=[document.upper() for document in DOCUMENTS[::100]])
    preflight.only("overlap")
    assert preflight()[2]["overlap"]["values"]["measured"] == 0.0
    rows = preflight.refuses(["overlap"], "--set", "data.heldout=leaky")
    assert rows["overlap"]["values"]["measured"] == 1.0
    assert "6 of 6 documents of leaky/heldout occur in toy/train" in rows["overlap"]["how"]


@pytest.mark.parametrize(
    "words",
    [("model.num_layers=64", "model.model_dim=16384"), ("training.batch_symbols=1073741824",)],
    ids=["weights", "micro-batch"],
)
def test_far_too_large_is_refused_without_allocating(words: tuple[str, ...], preflight: Preflight) -> None:
    preflight.only("memory", "step_time", "mfu", *(("parity", "causality") if len(words) > 1 else ()))
    before = peak_resident_bytes()
    rows = preflight.refuses(["memory"], *(f"--set={word}" for word in words))
    assert "by estimate, nothing allocated" in rows["memory"]["how"]
    assert rows["step_time"]["verdict"] == rows["mfu"]["verdict"] == "unknown"
    if len(words) > 1:
        assert rows["parity"]["verdict"] == rows["causality"]["verdict"] == "unknown"
    assert peak_resident_bytes() - before < GIB


@every_engine
def test_too_large_by_measurement(engine: str, preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    preflight.only("memory")
    package = engine_package(engine)
    facts = replace(package.device_facts(), free_bytes=50_000_000)
    monkeypatch.setattr(ask_rows, "engine_package", lambda name: replace(package, device_facts=lambda: facts))
    rows = preflight.refuses(["memory"], engine=engine)
    assert rows["memory"]["values"]["peak_bytes"] > 50_000_000 > rows["memory"]["values"]["estimated_least_bytes"]


def test_force_overrides_only_what_says_no(preflight: Preflight) -> None:
    preflight.only("clock")
    status, document, rows = preflight("--force", "clock", "--force", "mfu")
    assert status == 0 and document["forced"] == [] and not rows["clock"]["forced"]


def test_text_that_is_kept_out_of_training_is_not_counted(
    preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the text is reserved, and the run sees more than the other half."""
    preflight.only("enough_data")
    words = ("--set", "data.selection_frac=0.5", "--set", "training.steps=45")
    rows = preflight.refuses(["enough_data"], *words)
    sources = open_sources(tiny_spec("data.train=toy", "data.heldout=toy", "data.selection_frac=0.5"))
    available = rows["enough_data"]["values"]["available_symbols"]
    assert sources.train.num_symbols - 2 * 64 < available <= sources.train.num_symbols < 45 * 512
    assert rows["enough_data"]["values"]["epochs"] == 45 * 512 / available


@pytest.mark.parametrize(("more", "verdict"), [(0, "go"), (1, "no-go")])
def test_enough_is_where_the_loader_repeats_nothing(
    more: int, verdict: str, preflight: Preflight, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the very step: the last one without a window that was seen before, and the next."""
    preflight.only("enough_data")
    sources = open_sources(tiny_spec("data.train=toy", "data.heldout=toy"))
    steps = sources.loader.windows_per_epoch // 8 + more
    assert preflight("--set", f"training.steps={steps}")[2]["enough_data"]["verdict"] == verdict
    starts: list[int] = []
    read = sources.train.read
    monkeypatch.setattr(sources.train, "read", lambda start, count: starts.append(start) or read(start, count))
    for step in range(steps):
        sources.loader.batch(step)
    seen = np.zeros(sources.train.num_symbols, int)
    for start in starts:
        seen[start : start + 64] += 1
    assert (seen.max() > 1) == (more == 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data.selection_frac=0.0001"], "no document begins in its last 0.01%"),
        (["model.seq_len=65536", "training.batch_symbols=65536", "evaluation.batch_symbols=65536"], "65536"),
    ],
    ids=["nothing reserved", "too short"],
)
def test_text_that_the_run_would_refuse(words: list[str], message: str, preflight: Preflight) -> None:
    """The row opens the text as the run does, so what ends the run is a no-go."""
    preflight.only("shards")
    rows = preflight.refuses(["shards"], *(f"--set={word}" for word in words))
    assert message in rows["shards"]["how"]


def test_what_breaks_down_says_no(preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(context: Context) -> Row:
        raise RuntimeError("CUDA error: an illegal memory access\nlong story")

    preflight.only()
    monkeypatch.setitem(ask_rows.ASKED, "parity", broken)
    rows = preflight.refuses(["parity"])
    assert rows["parity"]["how"] == "RuntimeError: CUDA error: an illegal memory access"


@pytest.mark.parametrize("patch", [1, 4, 16])
def test_passes_of_the_audit_are_counted(patch: int, preflight: Preflight, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on the work holds: no more scoring passes than the plan allows for, and not half as many."""
    preflight.only("causality")
    made = 0
    engine = create_engine("torch", tiny_spec(f"model.patch_size={patch}"))

    def counted(method: Callable[[Any, np.ndarray], np.ndarray]) -> Callable[[Any, np.ndarray], np.ndarray]:
        def call(self: Any, x: np.ndarray) -> np.ndarray:
            nonlocal made
            made += len(x)
            return method(self, x)

        return call

    monkeypatch.setattr("shared.preflight.measure.measure_evaluation", lambda engine, symbols: 0.0)
    for name in ("score", "log_probs"):
        monkeypatch.setattr(type(engine), name, counted(getattr(type(engine), name)))
    assert preflight("--set", f"model.patch_size={patch}")[0] == 0
    allowed = functions.AUDIT_ROWS * functions.audit_passes(64, patch)
    assert allowed / 2 < made <= allowed
