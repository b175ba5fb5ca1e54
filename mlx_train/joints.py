"""What is trained, joined into a few arrays: a step launches a kernel for each array, and a small one costs its launch.

The joints are what the engine holds. A parameter is a view of its joint, so that joining them costs nothing; its
gradient is copied into the gradient of the joint, and everything after that is done to all parameters of one shape at
once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import mlx.core as mx

from shared.model import trained_parameters
from shared.ops import Ops
from shared.optim import WEIGHTS, partition_parameters, state_shapes
from shared.spec import Spec

Arrays = dict[str, mx.array]
# State that is one number, the same for every parameter.
COUNT = "snapshot_count"


class Joints:
    """The joints of a spec whose update is done in `parts` parts: in each part, the parameters of one shape and one
    optimizer group as a stack [K, *shape]."""

    def __init__(self, spec: Spec, parts: int) -> None:
        members: defaultdict[str, list[str]] = defaultdict(list)
        # The optimizer group of each joint.
        self.groups: dict[str, str] = {}
        trained = trained_parameters(spec)
        part_of = {name: part for part, names in enumerate(partition_parameters(spec, parts)) for name in names}
        for parameter in trained:
            shape = "x".join(map(str, parameter.shape))
            joint = f"{parameter.group} {shape} of part {part_of[parameter.name]}"
            members[joint].append(parameter.name)
            self.groups[joint] = parameter.group
        self.members = dict(members)
        self.names = [parameter.name for parameter in trained]
        # The joints of each part.
        self.parts = [[joint for joint in members if joint.endswith(f" of part {part}")] for part in range(parts)]
        self.state_names = [key for key in state_shapes(spec) if not key.startswith(WEIGHTS)]
        order = [name for names in self.members.values() for name in names]
        self._in_manifest = [order.index(name) for name in self.names]

    def join(self, values: Mapping[str, mx.array]) -> Arrays:
        """A stack for each joint, from one array for each parameter."""
        return {joint: mx.stack([values[name] for name in names]) for joint, names in self.members.items()}

    def split(self, joined: Mapping[str, mx.array]) -> Arrays:
        """A view for each parameter, in the order of the manifest."""
        found: Arrays = {}
        for joint, array in joined.items():
            names = self.members[joint]
            views = mx.split(array, len(names)) if len(names) > 1 else [array]
            found |= {name: mx.squeeze(view, 0) for name, view in zip(names, views, strict=True)}
        return {name: found[name] for name in self.names}

    def join_state(self, state: Mapping[str, mx.array]) -> Arrays:
        """`KIND/joint` from `KIND/parameter`."""
        joined: Arrays = {}
        for kind in dict.fromkeys(key.split("/", 1)[0] for key in state):
            for joint, names in self.members.items():
                if f"{kind}/{names[0]}" in state:
                    values = [state[f"{kind}/{name}"] for name in names]
                    joined[f"{kind}/{joint}"] = values[0] if kind == COUNT else mx.stack(values)
        return joined

    def split_state(self, joined: Mapping[str, mx.array]) -> Arrays:
        """`KIND/parameter` from `KIND/joint`, in the order of `state_shapes`."""
        found: Arrays = {}
        for key, array in joined.items():
            kind, joint = key.split("/", 1)
            names = self.members[joint]
            if kind == COUNT:
                found |= dict.fromkeys((f"{kind}/{name}" for name in names), array)
            else:
                views = mx.split(array, len(names))
                found |= {f"{kind}/{name}": mx.squeeze(view, 0) for name, view in zip(names, views, strict=True)}
        return {key: found[key] for key in self.state_names}

    def part(self, index: int, joined: Mapping[str, mx.array]) -> Arrays:
        """The joints of one part, or their state."""
        wanted = set(self.parts[index])
        return {key: array for key, array in joined.items() if key.split("/", 1)[-1] in wanted}

    def squared_norms(self, ops: Ops, grads: Mapping[str, mx.array]) -> mx.array:
        """shared.optim.squared_norms of the gradients of all joints: [K] float32, by parameter."""
        squares = [ops.sum(grads[joint] * grads[joint], axes=range(1, grads[joint].ndim)) for joint in self.members]
        return mx.concatenate(squares)[mx.array(self._in_manifest)]
