"""What is trained, joined into a few arrays for the optimizer: it is element by element but for Newton-Schulz.

Compiled with an array for each parameter, an update is hundreds of kernels, and torch's compiler compares each with
each: 47 of the 65 seconds before a first step on an H200. Joined, it is a few dozen, and a fifth of the launches.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from shared.model import trained_parameters
from shared.optim import state_shapes
from shared.spec import Spec

Arrays = dict[str, torch.Tensor]
# State that is one number, the same for every parameter.
COUNT = "snapshot_count"


class Joined:
    """The joints of a spec: matrices of one shape as a stack [K, R, C], the rest of each optimizer group end to end."""

    def __init__(self, spec: Spec) -> None:
        members: defaultdict[str, list[str]] = defaultdict(list)
        # The optimizer group of each joint.
        self.groups: dict[str, str] = {}
        for parameter in trained_parameters(spec):
            is_matrix = parameter.group == "matrix"
            joint = "x".join(map(str, parameter.shape)) if is_matrix else parameter.group
            members[joint].append(parameter.name)
            self.groups[joint] = parameter.group
        self.members = dict(members)
        self.kinds = {
            joint: sorted(
                {key.split("/", 1)[0] for key in state_shapes(spec) if key.endswith(f"/{names[0]}")} - {"weight"}
            )
            for joint, names in self.members.items()
        }

    def join(self, values: Mapping[str, torch.Tensor]) -> Arrays:
        """An array for each joint, from one for each parameter."""
        return {joint: self._joined(joint, [values[name] for name in names]) for joint, names in self.members.items()}

    def join_state(self, state: Mapping[str, torch.Tensor]) -> Arrays:
        """`KIND/joint` from `KIND/parameter`."""
        found = {}
        for joint, names in self.members.items():
            for kind in self.kinds[joint]:
                if kind == COUNT:
                    found[f"{kind}/{joint}"] = state[f"{kind}/{names[0]}"]
                else:
                    found[f"{kind}/{joint}"] = self._joined(joint, [state[f"{kind}/{name}"] for name in names])
        return found

    def write(self, joined: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
        """Copy the arrays of joints into those of parameters, or of `KIND/joint` into `KIND/parameter`."""
        to: list[torch.Tensor] = []
        parts: list[torch.Tensor] = []
        for key, array in joined.items():
            *kind, joint = key.split("/", 1)
            targets = [values["/".join([*kind, name])] for name in self.members[joint]]
            to += targets
            if kind == [COUNT]:
                parts += [array] * len(targets)
            elif self.groups[joint] == "matrix":
                parts += array.unbind(0)
            else:
                sizes = [target.numel() for target in targets]
                parts += [part.reshape(target.shape) for part, target in zip(array.split(sizes), targets, strict=True)]
        torch._foreach_copy_(to, parts)

    def _joined(self, joint: str, values: list[torch.Tensor]) -> torch.Tensor:
        if self.groups[joint] == "matrix":
            return torch.stack(values)
        return torch.cat([value.reshape(-1) for value in values])
