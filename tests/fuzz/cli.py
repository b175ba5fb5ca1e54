"""Command lines: sound ones with something wrong in them. None of them is one that should work for long."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tests.fuzz.mutate import RAW, TEXTS, Rng
from tests.fuzz.spec import override, seeds
from tests.fuzz.worker import GOLDEN, Broken, Reader, command

# In the folder lie runs/one (of one.toml, on bytes), runs/two (on tokens), a.jsonl, f.fit and the golden datasets.
# A word that is a preset's name would ask for the built-in corpus, which takes ten seconds to make.
SOUND = """
spec one.toml
spec tiny --json
spec --list
spec --schema
pack one
pack one --weights trained --output x.btw
pack one --output x.btw --set artifact.matrix.bits=8
pack one --weights best --output x.btw
score one --engine numpy --max-symbols 48 --output x.json
score two --engine numpy --max-symbols 48 --stride 8 --output x.json --data golden-tokens
score runs/one/artifact.btw --engine numpy --max-symbols 48 --json
audit runs/one --engine numpy --max-symbols 48
generate one --engine numpy --bytes 3 --prompt hello --temperature 0.5 --top-p 0.9 --seed 3
generate two --engine numpy --bytes 3 --json
compare one two --confidence 0.9 --margin-nats 0.01 --output x.md
compare one one --baseline one
record one --output r --author a --github b --title t --blurb u
record one --output r --replace
soup one one --output x.btw --engine numpy --recipe inverse --max-symbols 48
soup one one --output x.btw --engine numpy --weights trained --data golden
fit one --output x.fit --symbols 1000
data list
data verify golden
data verify golden golden-tokens
data import new a.jsonl --split train
data import new a.jsonl --heldout-frac 0.5 --text-field text
data import golden a.jsonl --split heldout --replace
tokenizer list
tokenizer train t golden --vocab-size 300 --normalisation identity --max-bytes 1000
tokenizer encode new golden --tokenizer datasets/golden-tokens/tokenizer.model
tokenizer encode golden-tokens golden --replace --tokenizer datasets/golden-tokens/tokenizer.model
train one.toml --engine mlx --no-finish --run new
train one.toml --engine mlx --no-finish --run one --resume
train one.toml --engine mlx --no-finish --run new --runs-dir other --profile 1
train one.toml --engine mlx --run one --resume
preflight one.toml --force nope --price 2 --fit f.fit --nodes 2 --ranks 1
sweep one.toml --seeds 2 --vary training.seed=1,2 --name s --try nope.key=1
parity one.toml --steps 2 --seq-len 16 --set nope.key=1
prepare one.toml --shards 1
"""
# Options whose large values ask for what takes long, rightly.
WORK = ("--bytes", "--profile", "--steps", "--ranks", "--nodes", "--shards", "--seq-len", "--port")
MORE = """
--json --help --version --nope --resume --replace --quick --list - -- -h --runs-dir --output --set --data --weights
--engine --seed --max-symbols
"""
WORDS = """
0 -1 1 1.5 1e400 nan inf -inf 99999999999 1_000 0x10 a.jsonl runs runs/one one.toml datasets datasets/golden
gone/gone runs/one/artifact.btw loop pipe /dev/null /dev/full /dev/zero / ~ * golden golden-tokens on tokenizers
a.toml x.toml/y pipe.toml loop.btw one/ ./one runs/../runs/one
"""
VALUES = (*TEXTS, *RAW.values(), *WORDS.split(), "9" * 40, "\u0663", "\udcff", "ascii=caf\u00e9")
SMALL = ("0", "-1", "1", "2", "x", "", "1.5", "nan", "inf", "-0", "0x1", "1e0", "\x1b[31m", "a" * 600)


def make(rng: Rng, folder: Path) -> Reader:
    for name, run in (("one", "bytes"), ("two", "tokens")):
        shutil.copytree(GOLDEN / run, folder / "runs" / name)
    shutil.copytree(GOLDEN / "datasets", folder / "datasets")
    os.environ["BYTETWIN_DATASETS"] = str(folder / "datasets")
    shutil.copyfile(GOLDEN / "bytes" / "spec.toml", folder / "one.toml")
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": f"text {number}"}) + "\n" for number in range(20)))
    (folder / "f.fit").write_text('{"c": 1.0, "a": 3.0, "alpha": 0.3}')
    (folder / "loop").symlink_to("loop")
    (folder / "loop.btw").symlink_to("loop.btw")
    os.mkfifo(folder / "pipe")
    os.mkfifo(folder / "pipe.toml")
    words = rng.choice(SOUND.strip().splitlines()).split(" ")
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        words = wrong(rng, words)
    # What no command line can carry.
    words = [word.replace("\0", "")[:100_000] for word in words]

    def read() -> None:
        try:
            command(words)
        finally:
            if not (folder / "pipe").is_fifo():
                raise Broken("a pipe was replaced by a file")

    (folder / "words.json").write_text(json.dumps(words))
    return read


def wrong(rng: Rng, words: list[str]) -> list[str]:
    at = rng.randrange(len(words))
    before = words[at - 1] if at else ""
    match rng.randrange(8):
        case 0 if at:
            return words[:at] + words[at + 1 :]
        case 1 if before not in WORK:
            return [*words[:at], words[at], *words[at:]]
        case 2 if "train" not in words:
            return [*words[: at + 1], rng.choice(MORE.split()), *words[at + 1 :]]
        case 3 if words[0] in ("spec", "train", "preflight", "prepare", "parity", "sweep"):
            word = override(rng, seeds()[0])
            # More layers, steps or symbols are more work, and no fault.
            if words[0] != "spec" and any(digit in word for digit in "123456789"):
                word = (
                    word.partition("=")[0]
                    + "="
                    + rng.choice(("-1", "x", "inf", "nan", "[]", "1e400", "9" * 5000, "''"))
                )
            return [*words, "--set", word]
        case 4:
            return [
                word + rng.choice(("s", "x", " ", "\n")) if index == at else word for index, word in enumerate(words)
            ]
        case _ if at:
            value = rng.choice(SMALL if before in WORK else VALUES)
            return [*words[:at], value, *words[at + 1 :]]
    return words
