"""The programs in self-contained scripts (shared.script): the core of `bytetwin train` and of `bytetwin score`."""
