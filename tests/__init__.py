"""The tests, and where the project lies that they test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
