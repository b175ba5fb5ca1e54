"""Profiles a training step of the torch engine with torch's own profiler: kernels on a GPU, operators on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from cuda_train import device
from shared.engine.protocol import Engine
from shared.engine.step_profiler import Cost, costs_by_name
from shared.files import replacing

# Longer kernel names are template arguments.
NAME_LENGTH = 90


class TorchProfiler:
    """Watches the whole process between start and stop. See shared.engine.step_profiler.StepProfiler."""

    def __init__(self) -> None:
        self._on_gpu = device.on_gpu()
        self.measured = "time on the GPU, by kernel" if self._on_gpu else "time on the CPU, by operator"
        self._profile: profile | None = None
        self._trace_path = Path()

    def start(self, trace_path: Path) -> None:
        self._trace_path = trace_path
        activities = [ProfilerActivity.CPU]
        if self._on_gpu:
            activities.append(ProfilerActivity.CUDA)
        self._profile = profile(activities=activities)
        self._profile.__enter__()

    def stop(self) -> list[Cost]:
        assert self._profile is not None, "stop without start"
        watched, self._profile = self._profile, None
        watched.__exit__(None, None, None)
        trace_path = self._trace_path
        with replacing(trace_path) as temporary:
            watched.export_chrome_trace(str(temporary))
        return costs_by_name(self._spent(watched))

    def _spent(self, watched: profile) -> dict[str, tuple[int, float]]:
        """(calls, seconds of its own) of each kernel or operator."""
        spent: dict[str, tuple[int, float]] = {}
        for entry in watched.key_averages():
            if (entry.device_type == DeviceType.CUDA) != self._on_gpu or entry.is_user_annotation:
                continue
            microseconds: Any = entry.self_device_time_total if self._on_gpu else entry.self_cpu_time_total
            name = entry.key if len(entry.key) <= NAME_LENGTH else f"{entry.key[: NAME_LENGTH - 3]}..."
            calls, seconds = spent.get(name, (0, 0.0))
            spent[name] = calls + entry.count, seconds + microseconds * 1e-6
        return spent


def make_profiler(engine: Engine) -> TorchProfiler:
    """The profiler for the torch engine; it watches torch, not this engine alone."""
    return TorchProfiler()
