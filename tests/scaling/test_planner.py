"""Layouts, their memory and their time: what must hold of any plan, and hand-computed cases."""

import math
from dataclasses import replace

import pytest

from parlance.core.errors import UserError
from parlance.scaling.accelerators import ACCELERATORS, GIB, find
from parlance.scaling.device_memory import RESERVE, activations_of, memory_of
from parlance.scaling.laws import CORRECTED, ParametricLaw
from parlance.scaling.layouts import Layout, check_fixed, layouts, parse_layout
from parlance.scaling.model_shape import derive_shape
from parlance.scaling.plan import RANGE
from parlance.scaling.planner import divisible, make_plan, usual_batch
from parlance.scaling.quantities import count
from parlance.scaling.sizing import affordable_flops, choose_size, shape_of_active

SHAPE = derive_shape(7e9)
EXPERTS = derive_shape(40e9, experts=8, experts_per_token=2)
A100 = find("a100-80gb")


@pytest.mark.parametrize("devices", [1, 6, 8, 24, 64])
def test_every_layout_uses_all_devices_and_the_whole_batch(devices: int) -> None:
    found = list(layouts(EXPERTS, devices=devices, per_node=8, sequences=96))
    assert len(found) == len(set(found)) > 0
    for layout in found:
        assert layout.devices == devices
        assert layout.replicas * layout.micro_batch * layout.accumulation == 96
        assert EXPERTS.heads % layout.tensor == 0
        assert EXPERTS.experts % layout.expert == 0
        assert 8 % layout.tensor == 0
        assert (layout.zero > 0) == (layout.shard > 1)
    assert any(layout.pipeline > 1 for layout in found) or devices == 1


def test_a_context_is_divided_where_it_is_long() -> None:
    long = derive_shape(7e9, context=65_536)
    assert any(layout.context == 8 for layout in layouts(long, devices=8, per_node=8, sequences=8))
    assert all(layout.context == 1 for layout in layouts(SHAPE, devices=8, per_node=8, sequences=8))


def test_zero_divides_what_it_says_by_the_sharded_ways_alone() -> None:
    """(A known error elsewhere: dividing by all devices, tensor and pipeline ways too.)"""
    alone = memory_of(SHAPE, Layout(), "mixed", "adamw")
    n = SHAPE.parameters()
    assert (alone.weights, alone.gradients) == pytest.approx((2 * n, 4 * n), rel=1e-3)
    assert alone.optimizer == pytest.approx(12 * n, rel=1e-3)
    one, two, three = (memory_of(SHAPE, Layout(shard=8, zero=z), "mixed", "adamw") for z in (1, 2, 3))
    block = SHAPE.attention_parameters() + SHAPE.mlp_parameters()
    assert (one.weights, one.gradients, one.optimizer) == (alone.weights, alone.gradients, alone.optimizer / 8)
    assert two.weights == alone.weights
    assert two.gradients == pytest.approx(alone.gradients / 8 + 4 * block)
    assert three.weights == pytest.approx(alone.weights / 8 + 2 * 2 * block)
    divided = memory_of(SHAPE, Layout(shard=8, zero=1, tensor=4, data=2), "mixed", "adamw")
    assert divided.optimizer == pytest.approx(alone.optimizer / 4 / 8, rel=0.01), "by 8 x 4, not by the 64 devices"


def test_bytes_a_weight_of_each_precision_and_optimizer() -> None:
    n, tables = SHAPE.parameters(), SHAPE.embedding_parameters() + SHAPE.head_parameters()

    def each(precision: str, optimizer: str) -> float:
        memory = memory_of(SHAPE, Layout(), precision, optimizer)  # type: ignore[arg-type]
        return memory.weights + memory.gradients + memory.optimizer

    assert each("mixed", "adamw") == pytest.approx(18 * n, rel=1e-4)
    assert each("fp32", "adamw") == pytest.approx(16 * n, rel=1e-4)
    assert each("bf16", "adamw") == pytest.approx(8 * n, rel=1e-4)
    assert each("mixed", "sgd") == pytest.approx(10 * n, rel=1e-4)
    assert each("mixed", "adamw") - each("mixed", "muon") == pytest.approx(4 * (n - tables), rel=1e-4)


def test_recomputation_pipeline_and_splitting_of_activations() -> None:
    def kept(**parts: object) -> float:
        return activations_of(SHAPE, Layout(**({"micro_batch": 1, "accumulation": 8} | parts)), 2)[0]  # type: ignore[arg-type]

    whole = kept()
    assert kept(recompute="full") < kept(recompute="selective") < whole
    assert kept(micro_batch=2) == 2 * whole
    assert kept(tensor=4) == pytest.approx(whole / 4)
    assert kept(context=4) == pytest.approx(whole / 4)
    stage = math.ceil(SHAPE.layers / 4) / SHAPE.layers
    assert kept(pipeline=4) == pytest.approx(4 * stage * whole), "four micro-batches in flight, a quarter of the layers"
    assert kept(pipeline=4, accumulation=1) == pytest.approx(stage * whole)
    inputs = 2 * SHAPE.context * SHAPE.width * SHAPE.layers
    assert kept(recompute="full") == pytest.approx(inputs + whole / SHAPE.layers)


def test_experts_are_divided_and_their_tokens_kept() -> None:
    """Eight experts, two of them a token."""
    n, one = EXPERTS, memory_of(EXPERTS, Layout(), "mixed", "adamw")
    divided = memory_of(n, Layout(expert=8), "mixed", "adamw")
    assert one.weights - divided.weights == pytest.approx(2 * n.expert_parameters() * 7 / 8)
    dense = n.model_copy(update={"experts": 1, "experts_per_token": 1})
    more, _ = activations_of(n, Layout(), 2)
    less, _ = activations_of(dense, Layout(), 2)
    copies = 2 * 2 * n.width  # sent to two experts, and what they give back
    assert more - less == pytest.approx(2 * 2048 * n.layers * (copies + 4 * n.mlp_width))
    # ZeRO-3 gathers a block twice: its attention and every expert that a device holds.
    for ways, experts in ((1, 8), (4, 2)):
        layout = Layout(expert=ways, shard=8, zero=3)
        held = n.parameters() - n.expert_parameters() * (1 - 1 / ways)
        gathered = 2 * 2 * (n.attention_parameters() + experts * n.mlp_parameters())
        assert memory_of(n, layout, "mixed", "adamw").weights == pytest.approx(2 * held / 8 + gathered, rel=1e-3)


def test_tables_and_logits_are_divided() -> None:
    whole = memory_of(SHAPE, Layout(), "mixed", "adamw")
    assert whole.logits == 8 * 2048 * SHAPE.vocab_size
    assert memory_of(SHAPE, Layout(tensor=4), "mixed", "adamw").logits == whole.logits / 4
    staged = memory_of(SHAPE, Layout(pipeline=4), "mixed", "adamw")
    assert staged.weights == pytest.approx(2 * (SHAPE.shared_parameters() / 4 + SHAPE.head_parameters()))


def test_few_key_and_value_heads_are_copied_among_tensor_ways() -> None:
    shape = derive_shape(7e9, kv_heads=2)
    pairs = 2 * shape.layers * shape.width * 2 * shape.head_width
    held = memory_of(shape, Layout(tensor=8), "mixed", "adamw").weights
    assert held == pytest.approx(2 * ((shape.parameters() - pairs) / 8 + pairs / 2), rel=1e-4)
    assert all(8 % layout.tensor == 0 for layout in layouts(shape, devices=8, per_node=8, sequences=8))
    odd = derive_shape(13e9, kv_heads=20)
    assert {layout.tensor for layout in layouts(odd, devices=8, per_node=8, sequences=8)} == {1, 2, 4}
    with pytest.raises(UserError, match="20 key/value heads"):
        check_fixed(odd, 8, {"tensor": "8"})


def test_the_recommendation_fits_and_nothing_that_fits_is_faster() -> None:
    plan = make_plan(derive_shape(65e9), tokens=1.4e12, accelerator=A100, devices=256)
    usable = A100.memory * (1 - RESERVE)
    assert plan.best.memory.total <= usable
    for candidate in plan.candidates:
        assert candidate.fits == (candidate.memory.total <= usable)
        assert not candidate.fits or candidate.time.total >= plan.best.time.total / 1.03
    assert "plain data parallel would need" in plan.reason
    small = make_plan(derive_shape(1e8), tokens=2e9, accelerator=A100, devices=8)
    assert (small.best.layout.data, small.best.layout.tensor, small.best.layout.pipeline) == (8, 1, 1)


def test_ties_go_to_what_divides_and_shards_less() -> None:
    """Without a network to wait for nearly everything takes as long: then the simplest layout is the best."""
    fast = replace(A100, link=1e18, network=1e18, memory=1e15)
    plan = make_plan(SHAPE, tokens=1e12, accelerator=fast, devices=8)
    assert plan.best.layout.words().startswith("data 8, micro-batch 16")
    assert plan.best.layout.recompute == "none"


def test_a_layout_that_hides_much_traffic_loses_ties() -> None:
    """ZeRO-3 over 2 048 devices with one sequence each is as fast only while nothing jitters."""
    plan = make_plan(derive_shape(65e9), tokens=1.4e12, accelerator=A100, devices=2048)
    assert plan.best.layout.zero < 3 or plan.best.layout.tensor > 1
    everywhere = [c for c in plan.candidates if c.layout.shard == 2048 and c.layout.zero == 3]
    assert min(c.time.hidden / c.time.arithmetic for c in everywhere) > 0.5


def test_too_many_devices_for_a_batch_are_told() -> None:
    plan = make_plan(SHAPE, tokens=1e9, accelerator=find("h100-80gb"), devices=4096)
    assert "the batch is small for so many devices" in plan.reason
    assert "small for so many" not in make_plan(SHAPE, tokens=1e11, accelerator=A100, devices=64).reason


def test_an_estimate_has_a_range_and_long_contexts_are_timed_as_causal() -> None:
    short, long = (
        make_plan(
            derive_shape(7e9, context=context), tokens=1e11, accelerator=A100, devices=1, fixed={"recompute": "none"}
        )
        for context in (2048, 131_072)
    )
    assert short.days_range == (RANGE[0] * short.days, RANGE[1] * short.days)
    assert short.mfu < 0.56
    for plan in (short, long):
        causal = plan.shape.training_flops_per_token(causal=True)
        assert plan.mfu == pytest.approx(0.52 * plan.shape.training_flops_per_token() / causal)
        assert plan.days * 86400 == pytest.approx(1e11 * causal / (0.52 * 312e12))


def test_a_plan_in_eight_bits_gains_what_was_published() -> None:
    hours = [
        make_plan(SHAPE, tokens=1e11, accelerator=find("h100-80gb"), devices=8, precision=precision).device_hours
        for precision in ("mixed", "fp8")
    ]
    assert 1.1 < hours[0] / hours[1] < 1.28


def test_no_loss_is_stated_outside_of_what_a_law_can_say() -> None:
    small = make_plan(derive_shape(1e6), tokens=1e10, accelerator=A100)
    assert (small.loss, small.summary()["predicted_loss"]) == (None, None)
    assert small.loss_note == "none: the law was fitted to 70 million parameters or more on 5 billion tokens or more"
    few = make_plan(SHAPE, tokens=1e9, accelerator=A100)
    assert few.loss is None
    free = ParametricLaw(CORRECTED.e, CORRECTED.a, CORRECTED.b, CORRECTED.alpha, CORRECTED.beta)
    characters = make_plan(derive_shape(1e5), tokens=3e6, accelerator=A100, law=free)
    assert free.predict(1e5, 3e6) > math.log(characters.shape.vocab_size)
    assert characters.loss is None
    assert "guessing among 256 tokens has 5.55" in characters.loss_note


def test_what_does_not_fit_is_told_what_would() -> None:
    small = find("rtx-4090")
    lean = make_plan(derive_shape(3e9), tokens=1e9, accelerator=small, devices=1)
    assert "--precision bf16 --optimizer muon needs 18.1 GiB and fits" in lean.reason
    large = make_plan(SHAPE, tokens=1e9, accelerator=small, devices=1)
    assert "--precision bf16 --optimizer muon still needs" in large.reason
    served = make_plan(derive_shape(65e9), tokens=1e9, accelerator=A100, devices=8)
    assert served.serving_devices == 2
    assert served.decoding_bound < 2 * 2039e9 / (2 * 64e9)


def test_time_money_energy_and_carbon_are_one_chain() -> None:
    plan = make_plan(
        SHAPE, tokens=1e12, accelerator=A100, devices=64, mfu=0.4, price=2.5, watts=350, pue=1.2, carbon_intensity=0.3
    )
    hours = 1e12 * SHAPE.training_flops_per_token() / (0.4 * 312e12) / 3600
    assert plan.device_hours == pytest.approx(hours)
    assert plan.days == pytest.approx(hours / 24 / 64)
    assert plan.cost == pytest.approx(2.5 * hours)
    assert plan.kilowatt_hours == pytest.approx(hours * 0.35 * 1.2)
    assert plan.carbon_kilograms == pytest.approx(plan.kilowatt_hours * 0.3)
    assert plan.loss == CORRECTED.predict(SHAPE.active_parameters(), 1e12)
    assert plan.decoding_bound == pytest.approx(2039e9 / (2 * (SHAPE.parameters() - SHAPE.embedding_parameters())))
    assert plan.serving_devices == 1
    assert plan.days_range is None, "the utilisation was given"
    assert plan.summary()["steps"] == math.ceil(1e12 / plan.batch)


def test_without_a_number_of_devices_the_fewest_that_hold_it() -> None:
    plan = make_plan(derive_shape(30e9), tokens=1e11, accelerator=A100)
    assert plan.best.fits
    half = make_plan(derive_shape(30e9), tokens=1e11, accelerator=A100, devices=plan.devices // 2)
    assert not half.best.fits
    assert half.reason.startswith("no layout fits: the leanest needs")
    assert min(c.memory.total for c in half.candidates) == half.best.memory.total


def test_a_fixed_layout_is_kept() -> None:
    fixed = parse_layout("tensor=4,pipeline=2,zero=1,recompute=full,micro-batch=2")
    plan = make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=64, fixed=fixed)
    for candidate in plan.candidates:
        layout = candidate.layout
        assert (layout.tensor, layout.pipeline, layout.zero, layout.recompute) == (4, 2, 1, "full")
        assert layout.micro_batch == 2
    replicas = make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=64, fixed={"data": "4"})
    assert all(candidate.layout.data == 4 for candidate in replicas.candidates)
    both = make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=16, fixed=parse_layout("shard=16,data=1,zero=3"))
    assert {(c.layout.shard, c.layout.data, c.layout.zero) for c in both.candidates} == {(16, 1, 3)}
    some = make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=16, fixed=parse_layout("shard=2,data=4"))
    assert {(c.layout.shard, c.layout.data) for c in some.candidates} == {(2, 4)}
    assert make_plan(SHAPE, tokens=1e12, accelerator=A100, fixed={"data": "6"}).devices == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tensor", "tensor is a whole number above zero"),
        ("tensor=0", "tensor is a whole number above zero"),
        ("tensor=2,tensor=4", "once at most"),
        ("rows=2", "write it like tensor=8"),
        ("zero=4", "zero is 0 or 1 or 2 or 3"),
        ("recompute=some", "recompute is none or selective or full"),
    ],
)
def test_words_of_a_layout_are_checked(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_layout(text)


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"tensor": "64"}, "the 32 heads cannot be divided into 64"),
        ({"expert": "2"}, "a model without experts cannot be divided into 2"),
        ({"context": "3"}, "a context of 2048 tokens cannot be divided into 3"),
        ({"pipeline": "64"}, "there are 32 layers to divide"),
        ({"tensor": "4", "data": "3"}, "12 devices for one copy do not divide 64 devices"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(fixed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_fixed(SHAPE, 64, fixed)


def test_a_contradiction_is_not_blamed_on_the_batch() -> None:
    for words in ("shard=4,zero=0", "shard=1,zero=2"):
        with pytest.raises(UserError, match="zero"):
            make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=16, fixed=parse_layout(words))
    fixed = parse_layout("tensor=2,pipeline=1,context=1,expert=1,shard=2,data=1")
    with pytest.raises(UserError, match="no layout of 16 devices has all of this"):
        make_plan(SHAPE, tokens=1e12, accelerator=A100, devices=16, fixed=fixed)
    with pytest.raises(UserError, match="larger than the 1000 tokens of the whole run"):
        make_plan(SHAPE, tokens=1000, accelerator=A100, batch=1e9)
    rounded = make_plan(SHAPE, tokens=1e11, accelerator=A100, devices=24, batch=1e6)
    assert (rounded.batch, rounded.batch_note[:15]) == (480 * 2048, "--batch 1e+06 r")
    assert make_plan(SHAPE, tokens=1e11, accelerator=A100, devices=8, batch=2**20).batch_note == ""


def test_a_batch_too_small_for_its_replicas_is_refused() -> None:
    with pytest.raises(UserError, match="1 sequences a step cannot be divided among 8 devices"):
        make_plan(SHAPE, tokens=1e9, accelerator=A100, devices=8, batch=2048, fixed={"data": "8"})


@pytest.mark.parametrize("sequences", [1, 7, 480, 1953, 5000])
@pytest.mark.parametrize("devices", [1, 8, 384, 2048])
def test_batches_are_rounded_a_little(sequences: int, devices: int) -> None:
    rounded = divisible(sequences, devices)
    if sequences >= devices:
        assert rounded == pytest.approx(sequences, rel=0.081)
    assert rounded >= 1


def test_usual_batches_are_near_published_ones() -> None:
    assert usual_batch(3e11) == pytest.approx(3.2e6, rel=0.05)  # GPT-3
    assert usual_batch(1.4e12) == pytest.approx(4e6, rel=0.5)  # LLaMA
    assert usual_batch(1e6) > 2**13


def test_sizes_follow_from_any_two_or_the_law() -> None:
    assert choose_size(CORRECTED, parameters=1e9, tokens=2e10).how == "given"
    assert choose_size(CORRECTED, parameters=1e9, flops=6e20).tokens == pytest.approx(1e11)
    assert choose_size(CORRECTED, tokens=1e11, flops=6e20).parameters == pytest.approx(1e9)
    best = choose_size(CORRECTED, flops=5.76e23)
    assert best.parameters == pytest.approx(CORRECTED.optimum(5.76e23).parameters)
    assert choose_size(CORRECTED, parameters=best.parameters).tokens == pytest.approx(best.tokens)
    asked = shape_of_active(lambda n: derive_shape(n, experts=8, experts_per_token=2), 12e9)
    assert asked.active_parameters() == pytest.approx(12e9, rel=0.011)
    assert asked.parameters() > 35e9
    with pytest.raises(UserError, match="two of"):
        choose_size(CORRECTED, parameters=1e9, tokens=1e9, flops=1e20)
    with pytest.raises(UserError, match="say what to train"):
        choose_size(CORRECTED, tokens=1e9)
    assert affordable_flops(300, find("h100-80gb"), "mixed", 0.4, 3.0) == pytest.approx(100 * 3600 * 989e12 * 0.4)
    with pytest.raises(UserError, match="give --price"):
        affordable_flops(300, find("h200"), "mixed", None, None)


@pytest.mark.parametrize(
    ("text", "value"), [("65b", 65e9), ("1.4T", 1.4e12), ("6e23", 6e23), ("2^20", 2**20), ("32_000", 32e3), ("5k", 5e3)]
)
def test_counts_are_read_as_people_write_them(text: str, value: float) -> None:
    assert count(text, what="--params") == value


@pytest.mark.parametrize("text", ["", "b", "65x", "-3", "0", "nan", "inf", "1e999", "1.2.3", "2^9999"])
def test_nonsense_counts_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="--params"):
        count(text, what="--params")


def test_the_table_of_devices_is_plausible() -> None:
    names = [device.name for device in ACCELERATORS]
    assert len(names) == len(set(names))
    for device in ACCELERATORS:
        assert 1e13 < device.peak < 1e16
        assert 16 * GIB <= device.memory <= 512 * GIB
        assert device.network <= device.link <= device.bandwidth
        assert 0.2 < device.reached < 0.7, device.name
        assert (device.price is None) == (device.price_source == "")
    assert find(" A100-80GB ").peak == 312e12
    with pytest.raises(UserError, match="h100-80gb"):
        find("abacus")
    own = find("peak=100,memory=24,bandwidth=900,watts=300,per-node=4")
    assert (own.peak, own.memory, own.bandwidth, own.watts, own.per_node) == (1e14, 24 * GIB, 9e11, 300, 4)
    for words, message in (
        ("peak=100,memory=24", "needs bandwidth, watts too"),
        ("peak=fast", "write NAME=NUMBER"),
        ("peak=1,peak=2", "each once at most"),
        ("peak=nan", "write NAME=NUMBER"),
        ("flops=3", "NAME one of peak, memory"),
    ):
        with pytest.raises(UserError, match=message):
            find(words)
    with pytest.raises(UserError, match="8-bit"):
        find("a100-80gb").peak_for("fp8")
    assert find("h100-80gb").peak_for("fp8") == 1979e12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mfu": 45.0}, "share between 0 and 1"),
        ({"mfu": math.nan}, "--mfu must be a number above zero"),
        ({"price": -1.0}, "--price must be a number above zero"),
        ({"pue": 0.5}, "at least 1"),
        ({"carbon_intensity": math.inf}, "--carbon-intensity must be a number above zero"),
        ({"tokens": 0.0}, "--tokens must be a number above zero"),
    ],
)
def test_numbers_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_plan(SHAPE, **({"tokens": 1e9, "accelerator": A100, "devices": 1} | options))  # type: ignore[arg-type]
