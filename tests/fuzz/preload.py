"""What the server of the children imports before it forks them."""

import tests.fuzz.worker  # noqa: F401
from shared.artifact import code_bytes
from shared.cli.main import COMMANDS
from shared.imports import import_by_name
from shared.spec import load_spec

for name in COMMANDS:
    import_by_name(f"shared.cli.{name}")

# Built once for all of them: no score of theirs is to wait for it.
code_bytes(None, load_spec("tiny"))
