"""Transfers and steps by hand: what each axis sends, how often, and what hides it."""

from dataclasses import replace
from typing import Any

import pytest

from parlance.scaling.accelerators import Accelerator, find
from parlance.scaling.collectives import all_gather, all_reduce, all_to_all, send, speed
from parlance.scaling.layouts import Layout
from parlance.scaling.model_shape import ModelShape, derive_shape
from parlance.scaling.step_time import StepTime, time_of

A100 = find("a100-80gb")
LINK, NETWORK = 0.8 * 300e9, 0.8 * 25e9
BEGIN, HOP, FAR_HOP = 8.4e-6, 3.4e-6, 9.6e-6
SLOW = replace(A100, network=2e9)
"""So slow a network that arithmetic hides only a part."""
SHAPE = derive_shape(7e9, kv_heads=8)
EXPERTS = derive_shape(40e9, experts=8, experts_per_token=2)
STREAM = 2048 * SHAPE.width * 2  # bytes of the residual stream of one sequence


def step(shape: ModelShape = SHAPE, device: Accelerator = A100, **parts: Any) -> StepTime:
    return time_of(shape, Layout(**parts), device, "mixed", 0.5)


def exposed(seconds: float, room: float) -> float:
    return 0.15 * seconds + max(0.0, 0.85 * seconds - room)


def test_a_ring_inside_a_machine_and_over_several() -> None:
    near, far = Layout(data=8), Layout(data=64)
    assert speed(near, "data", A100) == LINK
    assert speed(far, "data", A100) == pytest.approx(8 * NETWORK), "eight network cards work for one ring"
    assert speed(Layout(tensor=8, data=8), "data", A100) == pytest.approx(NETWORK)
    gathered = all_gather(near, "data", A100, bytes_=1e9, calls=3)
    assert gathered == pytest.approx(7 / 8 * 1e9 / LINK + 3 * (BEGIN + 7 * HOP))
    over = all_gather(far, "data", A100, bytes_=1e9, calls=1)
    assert over == pytest.approx(63 / 64 * 1e9 / (8 * NETWORK) + BEGIN + 56 * HOP + 7 * FAR_HOP)
    assert all_reduce(far, "data", A100, bytes_=1e9, calls=1) == 2 * over
    assert all_reduce(Layout(), "data", A100, bytes_=1e9, calls=1) == 0.0


def test_in_an_all_to_all_a_device_has_its_own_network_card_alone() -> None:
    inside = all_to_all(Layout(expert=8), "expert", A100, bytes_=1e9, calls=2)
    assert inside == pytest.approx(7 / 8 * 1e9 / LINK + 2 * (BEGIN + HOP))
    over = all_to_all(Layout(expert=64), "expert", A100, bytes_=1e9, calls=0)
    assert over == pytest.approx(56 / 64 * 1e9 / NETWORK)
    fast = replace(A100, network=1e15)
    local = all_to_all(Layout(expert=64), "expert", fast, bytes_=1e9, calls=0)
    assert local == pytest.approx(7 / 64 * 1e9 / LINK), "then the machine's own links are what it waits for"


def test_stages_send_to_their_neighbours() -> None:
    assert send(Layout(pipeline=4), "pipeline", A100, bytes_=1e9, calls=2) == pytest.approx(1e9 / LINK + 2 * HOP)
    far = send(Layout(tensor=8, pipeline=4), "pipeline", A100, bytes_=1e9, calls=0)
    assert far == pytest.approx(1e9 / NETWORK)


def test_tensor_ways_reduce_activations() -> None:
    calls = 4 * SHAPE.layers
    wait = BEGIN + 7 * HOP
    moved = 2 * 7 / 8 * 2 * STREAM / LINK  # of one all-reduce, two sequences
    assert step(tensor=8, micro_batch=2).communication == pytest.approx(calls * (moved + 2 * wait))
    again = step(tensor=8, micro_batch=2, recompute="full")
    assert again.communication == pytest.approx(1.5 * calls * (moved + 2 * wait)), "6 in place of 4"


def test_gradients_hide_behind_the_last_backward_pass_alone() -> None:
    gradients = 4 * (SHAPE.shared_parameters() + 2 * SHAPE.head_parameters())
    summed = 2 * (63 / 64 * gradients / (8 * 0.8 * 2e9) + (SHAPE.layers + 1) * (BEGIN + 56 * HOP + 7 * FAR_HOP))
    for accumulation in (1, 8):
        made = step(device=SLOW, data=64, accumulation=accumulation)
        room = 2 / 3 * made.arithmetic / accumulation
        assert made.communication == pytest.approx(exposed(summed, room), rel=1e-6)
        assert room < 0.85 * summed
        assert made.hidden == pytest.approx(summed - made.communication)
    once, more = step(device=SLOW, data=64), step(device=SLOW, data=64, accumulation=8)
    assert more.communication == pytest.approx(once.communication), "a longer step hides no more of it"


@pytest.mark.parametrize("accumulation", [1, 4])
def test_each_zero_stage_sends_what_it_says_as_often_as_it_must(accumulation: int) -> None:
    """Stages 2 and 3 keep a share of the gradients, so that every micro-batch scatters its own."""
    weights = SHAPE.shared_parameters() + 2 * SHAPE.head_parameters()
    wait = (SHAPE.layers + 1) * (BEGIN + 56 * HOP + 7 * FAR_HOP)

    def ring(bytes_each: int) -> float:
        return 63 / 64 * bytes_each * weights / (8 * 0.8 * 2e9) + wait

    one, two, three = (step(device=SLOW, shard=64, zero=zero, accumulation=accumulation) for zero in (1, 2, 3))
    busy = one.arithmetic
    first = exposed(ring(2), busy / 3 / accumulation)
    assert one.communication == pytest.approx(first + exposed(ring(4), 2 / 3 * busy / accumulation))
    assert two.communication == pytest.approx(first + exposed(accumulation * ring(4), 2 / 3 * busy))
    every = accumulation * (ring(4) + 2 * ring(2))
    assert three.communication == pytest.approx(exposed(every, busy)), "hidden behind the whole of the arithmetic"


def test_parts_of_a_sequence_send_keys_and_values_and_sum_their_gradients() -> None:
    """Llama 3.1 8B on 32 768 tokens in eight parts: 156 ms of gradients to sum, before anything hides them."""
    llama = ModelShape(
        vocab_size=128_256, context=32_768, width=4096, layers=32, heads=32, kv_heads=8, head_width=128, mlp_width=14336
    )
    h100 = find("h100-80gb")
    made = step(llama, h100, context=8)
    pairs = 3 * 32 * 7 / 8 * (32_768 * 2 * 8 * 128 * 2) / (0.8 * 450e9)
    pairs += 3 * 32 * (BEGIN + 7 * HOP)
    gradients = 2 * 7 / 8 * 4 * 8.03e9 / (0.8 * 450e9)
    assert gradients == pytest.approx(0.156, rel=0.01)
    summed = gradients + 2 * 33 * (BEGIN + 7 * HOP)
    assert made.communication == pytest.approx(pairs + exposed(summed, 2 / 3 * made.arithmetic), rel=1e-3)
    assert made.communication + made.hidden == pytest.approx(pairs + summed, rel=1e-3)


def test_experts_exchange_tokens_and_average_what_they_share() -> None:
    made = step(EXPERTS, expert=8)
    stream = 2048 * EXPERTS.width * 2
    routed = EXPERTS.layers * 4 * (7 / 8 * 2 * stream / LINK + BEGIN + HOP)
    shared = EXPERTS.shared_parameters() + 2 * EXPERTS.head_parameters()
    averaged = 2 * (7 / 8 * 4 * shared / LINK + (EXPERTS.layers + 1) * (BEGIN + 7 * HOP))
    assert made.communication == pytest.approx(routed + exposed(averaged, 2 / 3 * made.arithmetic))
    assert made.hidden > 0
    again = step(EXPERTS, expert=8, recompute="full")
    more = again.communication + again.hidden - made.communication - made.hidden
    assert more == pytest.approx(routed / 2), "6 exchanges in place of 4"


def test_a_pipeline_waits_sends_and_is_as_slow_as_its_longest_stage() -> None:
    shape = derive_shape(7e9, layers=32, width=4096)
    made = step(shape, pipeline=4, accumulation=12)
    assert made.bubble == pytest.approx(made.arithmetic * 3 / 12)
    assert made.communication == pytest.approx(12 * (2 * 2048 * 4096 * 2 / LINK + 2 * HOP))
    uneven = step(shape, pipeline=5, accumulation=12)
    assert uneven.arithmetic * 5 == pytest.approx(made.arithmetic * 4 * 35 / 32), "7 layers in the longest of five"


def test_a_step_without_communication_is_its_causal_arithmetic() -> None:
    made = step(micro_batch=4, accumulation=2)
    assert made.total == made.arithmetic
    assert made.arithmetic == pytest.approx(8 * 2048 * SHAPE.training_flops_per_token(causal=True) / (312e12 * 0.5))
    assert step(micro_batch=4, accumulation=2, recompute="full").total == pytest.approx(4 / 3 * made.total)


def test_eight_bits_gain_what_was_published() -> None:
    """1.28 (torchtitan) and 1.17 (nanochat), not the two of the doubled peak."""
    h100 = find("h100-80gb")
    times = [time_of(SHAPE, Layout(), h100, p, h100.reached_for(p)).arithmetic for p in ("mixed", "fp8")]  # type: ignore[arg-type]
    assert 1.17 < times[0] / times[1] < 1.28
