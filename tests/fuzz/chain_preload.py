"""What the server of `tests.fuzz.chain` does before it forks its children, besides what all such servers do."""

from shared.artifact import code_bytes
from shared.spec import load_spec
from tests.fuzz import preload  # noqa: F401

# The code of models that learn from scored text is other code.
code_bytes(None, load_spec("tiny", ["evaluation.adaptation=online"]))
