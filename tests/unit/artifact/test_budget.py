"""The byte budget: counted code and entropy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shared.artifact.budget import CODE_PACKAGES, budget_report, code_bytes, code_files, entropy_bits
from shared.errors import ArtifactError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for package in CODE_PACKAGES:
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_bytes(b"x" * 10)
    return tmp_path


def test_code_is_the_source_of_the_four_packages(tree: Path):
    assert code_bytes(tree) == 40
    for name, counted in [
        ("shared/spec/presets/a.toml", True),
        ("cuda_train/kernels/attention.cu", True),
        ("shared/tests/test_a.py", False),
        ("data/datasets/build.py", False),
        ("data/notes.txt", False),
        ("mlx_train/__pycache__/a.py", False),
        ("tests/unit/test_a.py", False),
        ("setup.py", False),
    ]:
        before = code_bytes(tree)
        path = tree / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"y" * 7)
        assert code_bytes(tree) - before == (7 if counted else 0), name


def test_a_missing_package_is_an_error_and_not_a_smaller_count(tree: Path):
    (tree / "data" / "__init__.py").unlink()
    (tree / "data").rmdir()
    with pytest.raises(ArtifactError, match="data: package not found"):
        code_bytes(tree)


def test_the_installed_code_is_found_and_counts_itself():
    counted = {path.name for path in code_files()}
    assert {"budget.py", "container.py", "smoke.toml"} <= counted
    assert code_bytes() == sum(path.stat().st_size for path in code_files()) > 50_000


def test_a_report_adds_code_and_artifact():
    code = code_bytes()
    report = budget_report(1000, 1000 + code)
    assert (report.code_bytes, report.total_bytes, report.fits) == (code, 1000 + code, True)
    assert not budget_report(1001, 1000 + code).fits


def test_entropy_of_known_distributions():
    assert entropy_bits(np.zeros((3, 4), np.int8)) == 0.0
    assert entropy_bits(np.array([], np.int8)) == 0.0
    assert entropy_bits(np.array([[-128, 127], [127, -128]], np.int8)) == 1.0
    assert entropy_bits(np.arange(-128, 128).astype(np.int8)) == 8.0
    assert entropy_bits(np.array([0, 0, 0, 1], np.int8)) == pytest.approx(0.75 * np.log2(4 / 3) + 0.5, rel=1e-12)
