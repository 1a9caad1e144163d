"""A pickle that leaves a trace when it is opened."""

import pickle
from pathlib import Path
from typing import Any

import pytest


class Bomb:
    """A pickle of it makes a file when it is opened."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.canary), "w"))


@pytest.fixture
def canary(tmp_path: Path) -> Any:
    """A file that code in one of the others would make; it must not be there after the test."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists()


@pytest.fixture
def trap(canary: Path) -> Bomb:
    """What makes it when it is unpickled."""
    return Bomb(canary)


@pytest.fixture
def bomb(trap: Bomb, canary: Path) -> bytes:
    """The pickle of that; the fixture shows once that it would."""
    content = pickle.dumps(trap)
    pickle.loads(content).close()
    canary.unlink()
    return content
