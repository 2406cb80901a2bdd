"""How long a transfer among the devices of an axis takes: rings, all-to-alls, sending to the next stage.

    all_reduce(layout, "data", accelerator, bytes_=4e9, calls=32)      # seconds

The model of Thakur et al. 2005: calls x latency + bytes / bandwidth. Bandwidth is 80 % of the nominal one of the
slowest link. In a ring a group that spans machines uses the network cards of all its devices in a machine; in an
all-to-all each device has its own card alone. A ring over p devices has p - 1 hops, as many of them between machines as
there are further machines; the latencies are those of NCCL's own model for its ring and large messages
(`src/graph/tuning.cc`: 8.4 us to begin, 3.4 us a hop over NVLink, 9.6 us over a network). Trees and other algorithms,
which are quicker for small messages on many devices, are not modelled.
"""

import math

from parlance.scaling.accelerators import Accelerator
from parlance.scaling.layouts import Layout

LINK_SHARE = 0.8
"""Of the nominal bandwidth that collectives reach."""
BEGIN, HOP, NETWORK_HOP = 8.4e-6, 3.4e-6, 9.6e-6
"""Seconds (see the module)."""


def speed(layout: Layout, axis: str, accelerator: Accelerator) -> float:
    """Bytes a second and device of a ring along an axis."""
    near, machines = _places(layout, axis, accelerator)
    if machines == 1:
        return LINK_SHARE * accelerator.link
    return LINK_SHARE * min(accelerator.link, accelerator.network * near)


def latency(layout: Layout, axis: str, accelerator: Accelerator) -> float:
    """Seconds that an all-gather or a reduce-scatter along an axis takes however little it moves."""
    ways = int(getattr(layout, axis))
    _, machines = _places(layout, axis, accelerator)
    return BEGIN + (ways - machines) * HOP + (machines - 1) * NETWORK_HOP


def all_gather(layout: Layout, axis: str, accelerator: Accelerator, *, bytes_: float, calls: float) -> float:
    """Seconds of `calls` all-gathers that end with `bytes_` on every device, all together; a reduce-scatter that begins
    with as many takes as long."""
    ways = int(getattr(layout, axis))
    if ways == 1:
        return 0.0
    moved = (ways - 1) / ways * bytes_ / speed(layout, axis, accelerator)
    return moved + calls * latency(layout, axis, accelerator)


def all_reduce(layout: Layout, axis: str, accelerator: Accelerator, *, bytes_: float, calls: float) -> float:
    """Seconds of `calls` all-reduces of `bytes_`, all together: a reduce-scatter and an all-gather each."""
    return 2.0 * all_gather(layout, axis, accelerator, bytes_=bytes_, calls=calls)


def all_to_all(layout: Layout, axis: str, accelerator: Accelerator, *, bytes_: float, calls: float) -> float:
    """Seconds of `calls` exchanges in which every device sends `bytes_` in equal parts to all, itself included."""
    ways = int(getattr(layout, axis))
    if ways == 1:
        return 0.0
    near, machines = _places(layout, axis, accelerator)
    local = (near - 1) / ways * bytes_ / (LINK_SHARE * accelerator.link)
    remote = 0.0
    if machines > 1:
        remote = (ways - near) / ways * bytes_ / (LINK_SHARE * accelerator.network)
    wait = BEGIN + (NETWORK_HOP if machines > 1 else HOP)  # all parts are under way at once
    return max(local, remote) + calls * wait


def send(layout: Layout, axis: str, accelerator: Accelerator, *, bytes_: float, calls: float) -> float:
    """Seconds of `calls` transfers of together `bytes_` to the next device of an axis."""
    if int(getattr(layout, axis)) == 1:
        return 0.0
    _, machines = _places(layout, axis, accelerator)
    if machines == 1:
        return bytes_ / (LINK_SHARE * accelerator.link) + calls * HOP
    return bytes_ / (LINK_SHARE * accelerator.network) + calls * NETWORK_HOP


def _places(layout: Layout, axis: str, accelerator: Accelerator) -> tuple[int, int]:
    """(devices of a group in one machine, machines of a group)."""
    ways, stride = int(getattr(layout, axis)), layout.stride(axis)
    if ways * stride <= accelerator.per_node:
        return ways, 1
    near = max(1, min(ways, accelerator.per_node // stride))
    return near, math.ceil(ways / near)
