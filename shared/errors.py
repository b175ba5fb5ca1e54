"""The errors a user can cause. The command line prints one line for each and exits with status 2."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input. The message is one line: what is wrong, where, and what is allowed."""


class SpecError(UserError):
    """A spec file, preset name or `--set` override that cannot be used."""


class DataError(UserError):
    """A dataset, shard or text file that is missing, damaged or empty."""


class ArtifactError(UserError):
    """A `.btw` file that is damaged, contradicts itself or was made for something else."""


class RunError(UserError):
    """A run directory or checkpoint that cannot be used as asked."""


class RanksError(Exception):
    """Another process of the same run is gone. Not an error of the input: exit status 1, and the run can be resumed."""
