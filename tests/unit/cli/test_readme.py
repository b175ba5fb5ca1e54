"""What the pages promise: every command they show works, and every room they name is there.

RUNS says what is run for a command that stands for many: a small spec, in one folder, in this order. An example that
names a large spec, GPUs or the hub goes through the parser of its command. `make` says what it would do.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from data.folders import ROOT_VARIABLE
from shared.cli.main import COMMANDS, _parser, main
from shared.spec import preset_names
from tests.unit.cli.test_makefile import make, two_gpus  # noqa: F401

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "CONTRIBUTING.md", "docs/tour.md", "docs/extending.md", "tests/README.md")
COMMAND = re.compile(r"(make|bytetwin|torchrun|mlx\.launch|python -m|sky) \S")
FENCED = re.compile(r"^```\w*\n(.*?)^```", re.S | re.M)

# What stands for placeholders where a command is parsed only.
STANDS_FOR = {"SPEC": "tiny", "section.key=value": "training.steps=1"}

SMALL = "tiny --set training.steps=4 --set training.compile=false --set evaluation.val_symbols=4096"
MINE = "--set data.train=mytext --set data.heldout=mytext --set data.selection_frac=0.1"
CONSTANT = "--set training.steps=6 --set schedule.warmdown_frac=0 --set training.val_every_steps=1"

# By the words on a page: what is run, each as it is here.
RUNS = {
    "data import mytext path/to/folder --heldout-frac 0.01": ["data import mytext path/to/folder --heldout-frac 0.2"],
    "data list|build|import|download|verify": ["data list", "data verify mytext"],
    "train smoke --set data.train=mytext --set data.heldout=mytext": [f"train {SMALL} {MINE} --run one"],
    "train SPEC [--engine mlx|torch] [--run NAME] [--resume]": [
        f"train {SMALL} {MINE} --engine torch --run two --set training.seed=1",
        f"train {SMALL} {MINE} --engine torch --run two --set training.seed=1 --resume",
    ],
    "train SPEC --profile 5": [f"train {SMALL} {MINE} {CONSTANT} --profile 2 --run three"],
    "preflight SPEC [--price P] [--force ROW] [--strict]": [
        f"preflight {SMALL} {MINE} --price 2.50 --force average --force enough_data --force shards --quick"
    ],
    "parity SPEC [--steps N]": [f"parity {SMALL} --steps 2"],
    "audit RUN|ARTIFACT|SPEC [--full]": ["audit runs/one/artifact.btw --data mytext", f"audit {SMALL} {MINE}"],
    "score RUN|ARTIFACT [--data NAME] [--engine E] [--weights best]": [
        "score one --data mytext --engine torch --weights best --output best.json",
        "score one --engine numpy --output numpy.json",
    ],
    "pack RUN [--set artifact.embed.bits=6 --output FILE]": [
        "pack one",
        "pack one --set artifact.embed.bits=6 --output six.btw",
    ],
    "pack RUN --fill --output FILE [--budget BYTES] [--minutes M]": [
        "pack one --fill --output filled.btw --budget 140000 --minutes 0.2 --set artifact.calibration.windows=4"
    ],
    "inspect --sizes SPEC": ["inspect --sizes tiny"],
    "inspect RUN|ARTIFACT [--loss]": ["inspect one --loss --symbols 256", "inspect six.btw"],
    "generate RUN|ARTIFACT --prompt TEXT": ["generate six.btw --prompt Once --bytes 4"],
    "export RUN|ARTIFACT --to safetensors|hf|mlx --output DIR": ["export one --to hf --output exported"],
    "record RUN... [--output DIR] [--against RECORD]": ["record one --output records/mine"],
    "prepare SPEC [--shards N]": [f"prepare {SMALL} {MINE} --shards 1"],
    "tokenizer train sp1024 mytext --vocab-size 1024": ["tokenizer train sp1024 mytext --vocab-size 1024"],
    "tokenizer encode mytext-sp1024 mytext --tokenizer sp1024": [
        "tokenizer encode mytext-sp1024 mytext --tokenizer sp1024"
    ],
    "tokenizer train|encode|list": ["tokenizer list"],
    "sweep SPEC... [--seeds 3] [--vary section.key=a,b] [--try section.key=v] [--jobs N|gpus] [--halving]": [
        f"sweep {SMALL} {MINE} --seeds 1 --vary training.steps=2 --try model.ln_scale=true --jobs 2 --engine mlx"
    ],
    "compare RUN|RECORD...": ["compare one two", "compare records/mine two"],
    "fit RUN... [--symbols T]": ["fit three --symbols 1e6 --output fit.json"],
    "prove ARTIFACT [--data NAME] [--bytes N]": ["prove six.btw --data mytext --bytes 150 --engine numpy"],
    "compress FILE --model ARTIFACT [--output F] [--engine E]": ["compress fit.json --model six.btw"],
    "decompress FILE --model ARTIFACT [--output F] [--engine E]": [
        "decompress fit.json.btz --model six.btw --output back.json --engine numpy"
    ],
    "plan --bytes N --minutes M [--gpus G] [--device D] [--output FILE]": [
        "plan --bytes 900000 --minutes 5 --device laptop --output planned.toml"
    ],
    "soup RUN... [--recipe uniform|inverse|greedy]": ["soup one other --recipe greedy --output soup.btw"],
    "spec SPEC|--list|--schema": ["spec tiny", "spec --list", "spec --schema"],
}


def commands() -> list[str]:
    """Every command on the pages, once, without the comment behind it."""
    found: dict[str, None] = {}
    for page in PAGES:
        text = (ROOT / page).read_text(encoding="utf-8")
        lines = [line.split("  #")[0].strip() for block in FENCED.findall(text) for line in block.splitlines()]
        inline = [" ".join(code.replace("\\|", "|").split()) for code in re.findall(r"`([^`]+)`", FENCED.sub("", text))]
        found |= dict.fromkeys(
            words for words in [*lines, *inline] if COMMAND.match(words) and "NAME --help" not in words
        )
    return list(found)


SHOWN = commands()


def of_kind(*programs: str) -> pytest.MarkDecorator:
    """The commands of the pages that begin with one of these words."""
    return pytest.mark.parametrize("words", [words for words in SHOWN if words.startswith(programs)])


@pytest.mark.slow
def test_every_command_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "datasets"))
    folder = tmp_path / "path" / "to" / "folder"
    folder.mkdir(parents=True)
    text = (ROOT / "docs" / "techniques.md").read_text(encoding="utf-8").split()
    for index in range(len(text) // 100):
        (folder / f"{index:03}.txt").write_text(" ".join(text[100 * index : 100 * (index + 1)]))
    for lines in RUNS.values():
        for line in lines:
            if line.startswith("soup"):  # another run of its spec and seed
                shutil.copytree("runs/one", "runs/other")
            # A model of four steps is no good one, so checks of it may fail; nothing may be refused.
            assert main(shlex.split(line)) in (0, 1), f"{line}: {capsys.readouterr().err}"


def test_what_runs_is_what_is_shown() -> None:
    assert {f"bytetwin {words}" for words in RUNS} <= set(SHOWN)


def test_every_command_and_every_preset_is_on_the_page() -> None:
    """A preset is a published system, its small sibling, or named."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    missing = [name for name in COMMANDS if f"\n| `bytetwin {name} " not in text]
    missing += [name for name in preset_names() if not re.search(rf"`{name}`|`{name.removesuffix('-mini')}` \|", text)]
    assert not missing, f"README.md has no row or word for {missing}"


@of_kind("bytetwin", "python -m mlx_train", "python -m cuda_train", "torchrun", "mlx.launch")
def test_every_command_is_one_that_its_parser_takes(words: str) -> None:
    if words.removeprefix("bytetwin ") in RUNS or words in ("bytetwin parity", "bytetwin preflight"):
        return
    line = re.sub(r".*\b(mlx_train|cuda_train) ", "train ", words.removeprefix("bytetwin "))
    arguments = [STANDS_FOR.get(word, word) for word in shlex.split(line)]
    parser, command = _parser(arguments)
    assert command is not None and parser.parse_args(arguments).command == arguments[0]


@of_kind("make")
def test_every_target_is_one_that_make_knows(words: str, two_gpus: Path) -> None:  # noqa: F811
    done = make("--dry-run", *shlex.split(words)[1:], gpus=two_gpus)
    assert done.returncode == 0, done.stderr


@of_kind("python -m tests")
def test_every_bench_is_there(words: str) -> None:
    assert importlib.util.find_spec(words.split()[2]) is not None


@of_kind("sky")
def test_the_cluster_file_takes_these_settings(words: str) -> None:
    (task,) = re.findall(r"cluster/\w+\.yaml", words)
    settings = yaml.safe_load((ROOT / task).read_text())["envs"]
    assert set(re.findall(r"--env (\w+)=", words)) <= settings.keys()


def test_the_tree_of_the_readme_names_every_room() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = re.search(r"^## What is where\n\n```\n(.*?)^```", text, re.S | re.M)
    assert tree is not None
    named = set(re.findall(r"^  (\w+)/ ", tree[1], re.M))
    assert named == {path.parent.name for path in (ROOT / "shared").glob("*/__init__.py")}
    for entry in re.findall(r"^(?:\w\S*)", tree[1], re.M):
        assert (ROOT / entry).exists(), entry
