"""Worlds of processes that all tests of this folder share."""

from collections.abc import Callable, Iterator

import pytest
from worlds import World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """A function size -> `World`, which starts the processes of each size once."""
    worlds: dict[int, World] = {}

    def of(size: int) -> World:
        if size not in worlds:
            worlds[size] = World(size, tmp_path_factory.mktemp("world"))
        return worlds[size]

    yield of
    for made in worlds.values():
        made.close()
