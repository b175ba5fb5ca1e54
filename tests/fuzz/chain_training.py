"""The first links of `tests.fuzz.chain`: a random spec trained by both engines, killed, resumed, and by two ranks."""

from __future__ import annotations

import json
import math
import random
import shutil
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from shared.tolerances import BF16_HIDDEN_REL, LOSS_CURVE_ABS, RANKS_LOSS_ABS
from tests.fuzz.chain_command import Command, Document, Done
from tests.fuzz.chain_spec import chains, draw_of, to_toml
from tests.fuzz.kill import Plan
from tests.fuzz.worker import Broken

ENGINES = ("mlx", "torch")
# A gradient so many times as long as the first one.
SHARP_RATIO = 10.0


class Trained:
    """One spec and what becomes of it; `broken` has a line for every promise that was not kept."""

    def __init__(self, scratch: Path, seed: int, index: int, engines: tuple[str, ...] = ENGINES) -> None:
        self.origin = f"chain {seed} {index}"
        self.rng = random.Random(self.origin)
        self.values = draw_of(chains(), self.rng.randrange(1 << 32))
        self.engines, self.own = engines, self.rng.choice(engines)
        self.folder = scratch / "in"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(scratch / "datasets", self.folder / "datasets")
        (self.folder / "chain.toml").write_text(to_toml(self.values))
        self.command = Command(self.folder, scratch)
        self.counts, self.broken = Counter[str](), list[str]()
        self.runs: dict[str, Document] = {}

    def attempt(self, link: Callable[[], None], links: tuple[str, ...]) -> None:
        name = link.__name__.removeprefix("link_")
        # Each link has choices of its own, so that it makes the same ones alone.
        self.rng = random.Random(f"{self.origin} {name}")
        chosen = self.rng.random() < 0.5
        chosen = name in links if links else chosen
        if name != "train" and not (chosen and self.runs):
            return
        self.counts[name] += 1
        try:
            link()
        except (Broken, AssertionError, ValueError, KeyError, OSError) as error:
            self.broken.append(f"{name}: {self.command.ran}: {type(error).__name__}: {error}")

    def well(self, *words: object, statuses: tuple[int, ...] = (0,), plan: Plan | None = None) -> Document:
        """The document of a command that must end so."""
        done = self.command(*words, "--json", plan=plan)
        if done.status not in statuses:
            raise Broken(f"status {done.status}: {done.told[-600:]}")
        return done.document

    @property
    def exact_steps(self) -> bool:
        return self.values["training"]["dtype"] == "float32"

    @property
    def is_timed(self) -> bool:
        """Whether rates follow the clock, so that no two runs are alike."""
        return bool(self.values["schedule"]["driver"] == "time")

    def train(self, engine: str, run: str, *words: object, plan: Plan | None = None) -> Done:
        more = ["--engine", engine, "--run", run, *words, "--json"]
        return self.command("train", "chain.toml", *more, plan=plan)

    def check_trained(self, done: Done, run: str) -> Document:
        """The document of a run that has ended well, or with problems that a random spec may have: after a few steps
        rounded matrices may not reach the loss yet."""
        if done.status not in (0, 1):
            raise Broken(f"status {done.status}: {done.told[-600:]}")
        document = done.document
        odd = [line for line in document["problems"] if not line.startswith(("packing: ", "qat: "))]
        if document["status"] != "finished" or odd or (done.status == 1) != bool(document["problems"]):
            raise Broken(f"status {done.status}, {document['status']}, {document['message']}, {document['problems']}")
        curve = self.curve(run)
        if sorted(curve) != list(range(1, self.values["training"]["steps"] + 1)):
            raise Broken(f"steps {sorted(curve)} of {self.values['training']['steps']}")
        return document

    def link_train(self) -> None:
        """Both engines train it, to the same curve, or refuse it with the same words before anything is made."""
        refused = {}
        for engine in self.engines:
            done = self.train(engine, engine)
            if done.status == 2:
                refused[engine] = done.last
                if (self.folder / "runs" / engine).exists():
                    self.broken.append(f"train: {self.command.ran}: refused, but the run is there: {done.last}")
                continue
            self.places = self.command.places
            self.runs[engine] = self.check_trained(done, engine)
        if refused:
            self.counts["refused"] += 1
            self.broken += [f"train refused on {engine}: {line}" for engine, line in refused.items()]
            self.runs = {}
            return
        self.same_curves(self.engines[0], self.engines[-1], self.curve_limit())

    def curve_limit(self) -> float:
        return LOSS_CURVE_ABS if self.exact_steps else BF16_HIDDEN_REL * math.log(400)

    def events(self, run: str) -> list[Document]:
        lines = (self.folder / "runs" / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def curve(self, run: str) -> dict[int, tuple[float, float]]:
        """(loss, norm of the gradient) of each step, as the run had it last."""
        steps = [event for event in self.events(run) if event["event"] == "step"]
        return {event["step"]: (event["nats_per_symbol"], event["grad_norm"]) for event in steps}

    def same_curves(self, first: str, second: str, limit: float) -> None:
        """Losses may differ by no more than `limit`; by nothing, norms neither, where that is 0."""
        one, other = self.curve(first), self.curve(second)
        if self.is_timed:
            return
        if one.keys() != other.keys():
            raise Broken(f"steps {sorted(one)} of {first}, {sorted(other)} of {second}")
        if limit == 0.0:
            apart = [step for step in one if one[step] != other[step]]
        else:
            # A gradient that has grown so multiplies rounding, and what comes after it is another run.
            sharp = [step for step, (_, norm) in one.items() if norm > SHARP_RATIO * one[min(one)][1]]
            compared = [step for step in one if step <= min(sharp, default=step)]
            apart = [step for step in compared if abs(one[step][0] - other[step][0]) > limit]
        if apart:
            raise Broken(f"curves apart at {apart}: {first} {one}, {second} {other}")

    def link_resume(self) -> None:
        """Killed or interrupted anywhere, by the same engine to the bit, by the other within the tolerance."""
        engine, second = self.rng.choice(self.engines), self.rng.choice(self.engines)
        by = self.rng.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM))
        plan = Plan(place=self.rng.randrange(self.places), by=by)
        self.train(engine, "half", plan=plan)
        killed = self.command.ran
        if not (self.folder / "runs/half/spec.toml").exists():
            self.counts["killed before the run was"] += 1
        finished = self.ended("half")
        done = self.train(second, "half", "--resume")
        self.command.ran = f"{killed} [{plan}], then {self.command.ran}"
        self.counts[f"resumed by {'the same' if engine == second else 'another'}"] += 1
        document = self.check_trained(done, "half")
        if engine != second and finished:
            return
        self.same_curves(engine, "half", 0.0 if engine == second else self.curve_limit())
        if engine == second and not self.is_timed:
            self.same_score(self.runs[engine]["score"], document["score"])
            self.same_files(f"runs/{engine}/artifact.btw", "runs/half/artifact.btw")

    def ended(self, run: str) -> bool:
        path = self.folder / "runs" / run / "metrics.jsonl"
        return path.exists() and '"finished"' in path.read_text()

    def same_files(self, first: str, second: str) -> None:
        if (self.folder / first).read_bytes() != (self.folder / second).read_bytes():
            raise Broken(f"{first} and {second} differ")

    def same_score(self, one: Document, other: Document) -> None:
        """Every digit of two scores, but for what depends on the time that an audit had."""
        apart = {name: (one[name], other.get(name)) for name in one if name != "audit" and one[name] != other.get(name)}
        if apart:
            raise Broken(f"scores differ in {apart}")

    def link_ranks(self) -> None:
        """Two ranks have the curve of one. Seldom, because three processes import torch for it."""
        rows = self.values["training"]["batch_symbols"] // self.values["model"]["seq_len"]
        if self.rng.random() < 0.5:
            return
        done = self.train("torch", "ranks", "--ranks", 2)
        if rows % 2:
            if done.status != 2 or (self.folder / "runs/ranks").exists():
                raise Broken(f"status {done.status} with {rows} rows: {done.told[-300:]}")
            return
        self.check_trained(done, "ranks")
        # Some random specs multiply rounding in a few steps; in the first there is nothing but the sum over ranks.
        first, second = (self.curve(run)[1][0] for run in ("torch", "ranks"))
        if self.exact_steps and not abs(first - second) <= RANKS_LOSS_ABS:
            raise Broken(f"the first loss is {first}, by two ranks {second}")
        self.same_curves("torch", "ranks", self.curve_limit())
        self.counts["ranks trained"] += 1
