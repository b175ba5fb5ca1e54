"""The time that a sweep says is left."""

from __future__ import annotations

from shared.study.time_left import TimeLeft


def test_the_others_take_as_long_as_those_before_them() -> None:
    now = [0.0]
    left = TimeLeft(["a", "b", "c", "d", "e"], 2, lambda: now[0])
    left.began("a")
    left.began("b")
    now[0] = 60.0
    # b ends now too, three wait for two places.
    assert left.ended("a") == ", 4 to go in about 1:30"
    left.began("c")
    now[0] = 80.0
    # The mean is 70 s now: c has 50 of it left, two wait.
    assert left.ended("b") == ", 3 to go in about 1:35"
    left.began("d")
    left.began("e")
    now[0] = 150.0
    assert left.ended("c") == ", 2 to go in about 0:07"
    assert left.ended("d") == ", 1 to go in about 0:05"
    assert left.ended("e") == ""
