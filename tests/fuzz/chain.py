"""Random specs through the whole chain of public commands, each of which keeps its promises.

Chain `index` of a seed is a spec and a row of choices. Its links are trained runs of both engines, the same run killed
and resumed, packed again and otherwise, inspected, scored by every implementation, proved, exported and read back,
coded with, recorded, reported on and sampled from. A command runs in a process of its own in the chain's folder. What
breaks a promise is a line with the command; the spec is printed below the lines.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from shared.tolerances import ADAPTED_BPB_ABS, BF16_HIDDEN_REL, NATS_ABS
from tests.fuzz.chain_command import WAIT_S, Document, prepare
from tests.fuzz.chain_reading import read_back
from tests.fuzz.chain_spec import artifacts, draw_of, settings_words, to_toml
from tests.fuzz.chain_training import ENGINES, Trained
from tests.fuzz.kill import Plan
from tests.fuzz.worker import Broken

SCORERS = (*ENGINES, "numpy")


def run_chains(
    count: int,
    seed: int,
    only: int | None = None,
    links: tuple[str, ...] = (),
    engines: tuple[str, ...] = ENGINES,
    server: str = "chain_preload",
) -> int:
    """Run chains 0 ... count - 1 of a seed, or one alone, with half of the links or those named; prints what broke and
    a line of counts, and returns an exit status. `server` is the module that is imported before children are forked."""
    counts, begin_s = Counter[str](), time.monotonic()
    multiprocessing.get_context("forkserver").set_forkserver_preload([f"tests.fuzz.{server}"])
    with tempfile.TemporaryDirectory(prefix="bytetwin-chain-") as scratch:
        prepare(Path(scratch))
        for index in range(count) if only is None else [only]:
            chain = Chain(Path(scratch), seed, index, engines)
            chain.run(links)
            counts += chain.counts
            counts["chains"] += 1
            counts["broken"] += bool(chain.broken)
            print(f"{index}: {', '.join(chain.counts)}", file=sys.stderr, flush=True)
            if chain.broken:
                again = f"python -m tests.fuzz chain --seed {seed} --only {index}"
                print("\n  ".join([again, *chain.broken]), f"\n{to_toml(chain.values)}", flush=True)
    print(", ".join(f"{name} {number}" for name, number in sorted(counts.items())), flush=True)
    print(f"chain: total {counts['chains']}, broken {counts['broken']} ({time.monotonic() - begin_s:.0f} s)")
    return 1 if counts["broken"] else 0


class Chain(Trained):
    """A spec and all that becomes of it."""

    def run(self, links: tuple[str, ...]) -> None:
        """Half of the links, or those named, in their order; `train` is always one."""
        for link in (self.link_train, self.link_resume, self.link_ranks, self.link_pack, self.link_fill):
            self.attempt(link, links)
        for link in (self.link_score, self.link_killed_score, self.link_prove, self.link_code, self.link_export):
            self.attempt(link, links)
        for link in (self.link_record, self.link_views, self.link_generate):
            self.attempt(link, links)

    # Packing.

    @property
    def scorers(self) -> tuple[str, ...]:
        """What can score it: the oracle cannot learn."""
        return ENGINES if self.values["evaluation"]["adaptation"] else SCORERS

    @property
    def artifact(self) -> str:
        return f"runs/{self.own}/artifact.btw"

    def link_pack(self) -> None:
        """A run packs to the same bytes again, with every implementation where nothing is measured; other settings
        give a file whose parts add up."""
        own = self.values["artifact"]
        measured = own["logits"] != "none" or self.is_calibrated(own)
        self.check_inspected(self.artifact)
        for engine in [self.own] if measured else SCORERS:
            packed = self.well("pack", self.own, "--engine", engine, "--output", "again.btw", statuses=(0, 1))
            self.same_files(self.artifact, "again.btw")
            if packed["artifact_bytes"] != (self.folder / "again.btw").stat().st_size:
                raise Broken(f"{packed['artifact_bytes']} bytes said")
        other = draw_of(artifacts(), self.rng.randrange(1 << 32))
        (self.folder / "settings.txt").write_text("\n".join(settings_words(other)))
        two_sided = "two_sided" in str(other)
        engine = self.rng.choice(ENGINES if two_sided else SCORERS)
        weights = self.rng.choice(["averaged", "trained"])
        words = ["--weights", weights, "--engine", engine, "--output", "other.btw", *settings_words(other)]
        packed = self.well("pack", self.own, *words, statuses=(0, 1))
        inspected = self.check_inspected("other.btw")
        if inspected["sha256"] != packed["sha256"]:
            raise Broken("inspect names another hash than pack")
        if self.rng.random() < 0.3:
            costs = self.well("inspect", self.own, "--loss", "--symbols", 200, "--engine", self.rng.choice(SCORERS))
            if not all(math.isfinite(row["loss_bpb"]) for row in costs["tensors"]):
                raise Broken("costs that are no numbers")

    def is_calibrated(self, artifact: Document) -> bool:
        settings = [artifact["matrix"], artifact["embed"], artifact["head"], *artifact["tensors"]]
        return any(each["rounding"] != "nearest" or each.get("hessian_clip") for each in settings)

    def check_inspected(self, path: str) -> Document:
        found, size = self.well("inspect", path), (self.folder / path).stat().st_size
        together = found["header_bytes"] + sum(row["stored_bytes"] for row in found["tensors"])
        if found["artifact_bytes"] != size or abs(together - size) > 0.01:
            raise Broken(f"{size} bytes, {found['artifact_bytes']} said, the parts add up to {together}")
        if found["parameters"] != sum(row["weights"] for row in found["tensors"]):
            raise Broken(f"{found['parameters']} parameters, in the tensors others")
        return found

    def link_fill(self) -> None:
        """A budget is filled to 2,000 bytes below, or the best codes fit, or it is said that nothing fits."""
        if self.values["artifact"]["calibration"]["source"] == "none":
            return
        packed = self.well("pack", self.own, "--output", "again.btw", statuses=(0, 1))
        budget = packed["code_bytes"] + int(packed["artifact_bytes"] * self.rng.choice((0.7, 0.9, 1.0, 1.2, 2.0)))
        words = ["--fill", "--budget", budget, "--output", "filled.btw", "--minutes", 0.02]
        words += ["--keep-methods"] if self.rng.random() < 0.3 else []
        engine = self.rng.choice(SCORERS if "two_sided" not in str(self.values["artifact"]) else ENGINES)
        done = self.command("pack", self.own, *words, "--engine", engine, "--json")
        if done.status == 0:
            size = (self.folder / "filled.btw").stat().st_size + packed["code_bytes"]
            self.counts["filled within 2,000"] += budget - size <= 2000
            if size > budget:
                raise Broken(f"{size} bytes for a budget of {budget}")
            self.check_inspected("filled.btw")
            self.well("score", "filled.btw", "--engine", self.rng.choice(self.scorers))
        elif done.status not in (1, 2):
            raise Broken(f"status {done.status}: {done.told[-600:]}")
        else:
            self.counts[f"not filled, status {done.status}"] += 1

    # Scores.

    def score_limit(self) -> float:
        """Bits per byte that two implementations may be apart."""
        if not self.exact_steps:
            return 8 * BF16_HIDDEN_REL
        adapted = self.values["evaluation"]["adaptation"]
        return ADAPTED_BPB_ABS if adapted else 4 * NATS_ABS

    def link_score(self) -> None:
        """Every implementation gives an artifact the same bits per byte, the run's engine its very score; any stride
        counts every symbol once."""
        first = self.runs[self.own]["score"]
        for path in self.rng.sample([self.artifact, "other.btw"], 1):
            if not (self.folder / path).exists():
                continue
            found = {engine: self.well("score", path, "--engine", engine) for engine in self.scorers}
            if path == self.artifact:
                self.same_score({**first, "chosen": None}, found[self.own])
            facts = {
                engine: [each[name] for name in ("symbols", "bytes", "documents", "dataset")]
                for engine, each in found.items()
            }
            if any(each != facts["torch"] for each in facts.values()):
                raise Broken(f"counts differ: {facts}")
            bpb = {engine: each["bpb"] for engine, each in found.items()}
            if max(bpb.values()) - min(bpb.values()) > self.score_limit():
                raise Broken(f"{path}: {bpb}")
        seq_len = self.values["model"]["seq_len"]
        stride = self.rng.randint(1, seq_len)
        again = self.well("score", self.artifact, "--engine", self.rng.choice(self.scorers), "--stride", stride)
        if again["symbols"] != first["symbols"] or not 0 < again["bpb"] < 30:
            raise Broken(f"stride {stride}: {again['symbols']} symbols of {first['symbols']}, {again['bpb']} bpb")
        online = ["--set", "evaluation.adaptation=online", "--set", "evaluation.adaptation.chunk_symbols=100"]
        if self.rng.random() < 0.3:
            found = {engine: self.well("score", self.artifact, "--engine", engine, *online) for engine in ENGINES}
            limit = ADAPTED_BPB_ABS if self.exact_steps else self.score_limit()
            if abs(found["mlx"]["bpb"] - found["torch"]["bpb"]) > limit:
                raise Broken(f"online: {[each['bpb'] for each in found.values()]}")
        full = ["--full", "--steps", 2] if self.rng.random() < 0.3 else []
        self.well("audit", self.own, "--engine", self.rng.choice(ENGINES if full else self.scorers), *full)
        weights = self.rng.choice(["averaged", "trained", "best"])
        self.well("score", self.own, "--weights", weights, "--engine", self.rng.choice(self.scorers))

    def link_killed_score(self) -> None:
        """A score that was killed after any pass resumes to the same digits."""
        engine = self.rng.choice(self.scorers)
        words = ["score", self.artifact, "--engine", engine, "--output", "whole.json", "--json"]
        whole = self.command(*words, every_pass=True)
        if whole.status != 0:
            raise Broken(f"status {whole.status}: {whole.told[-300:]}")
        words[5] = "half.json"
        plan = Plan(place=self.rng.randrange(self.command.places))
        self.command(*words, plan=plan, every_pass=True)
        half = self.command(*words, every_pass=True)
        self.counts["score resumed"] += "resumes after" in half.told
        if half.status != 0:
            raise Broken(f"status {half.status} after {plan}: {half.told[-300:]}")
        self.same_score(whole.document, half.document)
        if left := sorted(path.name for path in self.folder.glob("*.state")):
            raise Broken(f"left over: {left}")

    # What artifacts are for.

    def link_prove(self) -> None:
        """The score as the size of a file."""
        engine = self.rng.choice(self.scorers)
        path = self.rng.choice([path for path in (self.artifact, "other.btw") if (self.folder / path).exists()])
        self.well("prove", path, "--bytes", self.rng.choice((400, 4000)), "--engine", engine)

    def link_code(self) -> None:
        """A file comes back to the byte, on any implementation; a model of tokens takes text."""
        tokens = self.values["vocabulary"]["kind"] == "tokens"
        content = self.rng.choice((b"", b"x", "caf\u00e9 \U0001f600\n\tthe end".encode() * 5, bytes(range(256))))
        if tokens and content == bytes(range(256)):
            content = b" two  spaces\r\n and \xe2\x96\x81"
        (self.folder / "text").write_bytes(content)
        encoder, decoder = self.rng.choice(self.scorers), self.rng.choice(self.scorers)
        adapted = bool(self.values["evaluation"]["adaptation"])
        decoder = encoder if adapted else decoder
        self.well("compress", "text", "--model", self.artifact, "--engine", encoder)
        self.well("decompress", "text.btz", "--model", self.artifact, "--engine", decoder, "--output", "back")
        self.same_files("text", "back")

    def link_export(self) -> None:
        """Weights for others are those of the artifact, and what others compute with them is what we compute."""
        for form in ("safetensors", "hf", "mlx"):
            self.well("export", self.artifact, "--to", form, "--output", form)
        self.command.ran = "reading back the exports of the last commands"
        report = self.folder / "read.json"
        self.command.fork(read_back, self.folder, self.artifact, report, self.folder / "datasets")
        found = json.loads(report.read_text()) if report.exists() else {"failed": self.command.status}
        if found:
            raise Broken(f"{found}")

    def link_record(self) -> None:
        """A record's scripts score to the same digits, and train to the same artifact.
        Seldom, because each script is a process of its own."""
        if self.rng.random() < 0.3:
            return
        self.well("record", self.own, "--output", "rec")
        (seed,) = self.folder.glob("rec/seed*/artifact.btw")
        expected = self.runs[self.own]["score"]
        found = json.loads(self.script("score.py", str(seed)))
        parts = ("bpb", "nats", "bytes", "symbols", "documents", "artifact_sha256")
        if [found[name] for name in parts] != [expected[name] for name in parts]:
            raise Broken(f"score.py: {[found[name] for name in parts]}, {[expected[name] for name in parts]}")
        trained = json.loads(self.script("train.py", "train", "--name", "scripted"))
        if not self.is_timed:
            self.same_score(expected, trained)
            self.same_files(self.artifact, "runs/scripted/artifact.btw")
        self.counts["scripts"] += 1

    def script(self, name: str, *words: str) -> str:
        line = [sys.executable, str(self.folder / "rec" / name), *words]
        self.command.ran = " ".join(line)
        environment = {**os.environ, "BYTETWIN_DATASETS": str(self.folder / "datasets"), "PYTHONPATH": ""}
        done = subprocess.run(line, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=WAIT_S)
        if done.returncode not in (0, 1):
            raise Broken(f"status {done.returncode}: {done.stderr[-600:]}")
        return done.stdout

    def link_views(self) -> None:
        """What a spec says of itself, reports and comparisons of runs, and a soup of two."""
        shown = self.well("spec", "chain.toml")
        sizes = self.well("inspect", "--sizes", "chain.toml", "--engine", self.rng.choice(ENGINES))
        if not shown or not sizes:
            raise Broken("nothing is said of the spec")
        words = ["--loss"] if self.rng.random() < 0.3 else []
        self.well("report", self.own, "--symbols", 300, "--engine", self.rng.choice(self.scorers), *words)
        page = (self.folder / "runs" / self.own / "report.html").read_text()
        if "NaN" in page.split("<script", 1)[0]:
            raise Broken("NaN in the page")
        self.well("report", *ENGINES, "--output", "both.html", "--symbols", 0)
        self.well("compare", *ENGINES)
        self.well("watch", self.own, "--once")
        engine = self.rng.choice(self.scorers)
        if "two_sided" not in str(self.values["artifact"]) or engine != "numpy":
            self.well("soup", *ENGINES, "--engine", engine, "--output", "soup.btw", statuses=(0, 1))

    def link_generate(self) -> None:
        """The same seed gives the same text."""
        engine, bytes_ = self.rng.choice(self.scorers), self.rng.randint(1, 40)
        prompt = self.rng.choice(("", "a", "caf\u00e9", "The function returns a " * 3))
        more = ["--temperature", self.rng.choice((0, 0.8, 2)), "--top-p", self.rng.choice((0.5, 1)), "--seed", 3]
        words = ["generate", self.artifact, "--engine", engine, "--bytes", bytes_, "--prompt", prompt, *more]
        first, again = self.well(*words), self.well(*words)
        if first != again:
            raise Broken(f"{first} {again}")
