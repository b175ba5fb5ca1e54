"""What the server of the children imports before it forks them."""

import tests.fuzz.worker  # noqa: F401
from shared.cli.main import COMMANDS
from shared.imports import import_by_name

for name in COMMANDS:
    import_by_name(f"shared.cli.{name}")
