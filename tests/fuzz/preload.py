"""What the server of the children imports before it forks them: all that a command would, engines too."""

import shared.export.folder
import shared.study.soup
import shared.training.run  # noqa: F401
import tests.fuzz.worker  # noqa: F401
from cuda_train.package import PACKAGE as CUDA
from mlx_train.package import PACKAGE as MLX
from shared.artifact import code_bytes
from shared.cli.main import COMMANDS
from shared.engine.registry import ENGINES
from shared.imports import import_by_name
from shared.script.build import scoring_script
from shared.spec import load_spec

for name in COMMANDS:
    import_by_name(f"shared.cli.{name}")
for package in (MLX, CUDA):
    package.make_ops()

# Built once for all of them, with and without the built-in text and adaptation: no score or record of theirs is to wait
# for it.
for text in ([], ["data.train=mine", "data.heldout=mine"]):
    for adaptation in ([], ["evaluation.adaptation.kind=score_first"]):
        spec = load_spec("tiny", text + adaptation)
        code_bytes(None, spec)
        for engine in ENGINES:
            scoring_script(engine, spec)
