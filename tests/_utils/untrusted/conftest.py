"""A pickle that creates a file when it is opened."""

import pickle
from pathlib import Path
from typing import Any

import pytest


class Bomb:
    """Its pickle creates a file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """The file that unpickling would create; it must not exist after the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def trap(canary: Path) -> Bomb:
    """An object whose unpickling creates the file."""
    return Bomb(canary)


@pytest.fixture
def bomb(trap: Bomb, canary: Path) -> bytes:
    """The pickle of that object, opened once by the fixture to show that it works."""
    content = pickle.dumps(trap)
    pickle.loads(content).close()
    canary.unlink()
    return content
