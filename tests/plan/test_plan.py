"""What a recipe means for a model: shares by hand, shared inputs, refusals."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MixtralConfig, PhiConfig

from nm_export.errors import UserError
from nm_export.plan import make_plan
from tests.tiny_models import ARCHITECTURES, CONFIGS, dense_model, recipe

ATTENTION = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkv"]


def plan(model=None, **sparsity):
    return make_plan(model or dense_model(), recipe(**sparsity))


def test_shares():
    # one layer of the tiny Llama: q, o 32 x 32, k, v 32 x 16, gate, up, down 32 x 64
    attention, mlp = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 64
    one = plan(targets="*.down_proj", pattern="4:16")
    assert [linear.name for linear in one.pruned] == ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert one.pruned_share == pytest.approx(32 * 64 / (attention + mlp))
    assert one.saved_share == pytest.approx(0.75 * 32 * 64 / (attention + mlp))
    everything = plan(pattern="8:16", overrides=[{"modules": "*.mlp.*", "pattern": "1:4"}])
    assert everything.pruned_share == 1
    assert everything.saved_share == pytest.approx((attention / 2 + 3 * mlp / 4) / (attention + mlp))
    assert plan(pattern="16:16").saved_share == 0


def test_linears_that_share_an_input_and_a_scheme_are_pruned_once():
    groups = plan(pattern="8:16").input_groups
    assert ATTENTION in groups
    assert ["model.layers.1.mlp.gate_proj", "model.layers.1.mlp.up_proj"] in groups
    assert ["model.layers.1.mlp.down_proj"] in groups
    assert len(groups) == 2 * 4
    groups = plan(pattern="8:16", overrides=[{"modules": "*.k_proj", "pattern": "2:4"}]).input_groups
    assert [ATTENTION[0], ATTENTION[2]] in groups
    assert [ATTENTION[1]] in groups


def test_exponents_that_magnitude_ignores_do_not_split_a_group():
    overrides = [{"modules": "*.v_proj", "score_exponent": 2.0}]
    assert ATTENTION in plan(overrides=overrides).input_groups
    assert ATTENTION not in plan(score="weight_norm", overrides=overrides).input_groups


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nothing_is_computed_for_a_dry_run(architecture):
    real = plan(dense_model(architecture), shift="dynamic_mean")
    with FakeTensorMode():
        fake = plan(AutoModelForCausalLM.from_config(CONFIGS[architecture]()), shift="dynamic_mean")
    assert fake == real
    assert fake.sparsity() == real.sparsity()


def test_parallel_blocks_share_their_norm():
    config = PhiConfig(vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    groups = plan(AutoModelForCausalLM.from_config(config), pattern="2:4").input_groups
    assert [*ATTENTION, "model.layers.0.mlp.fc1"] in [sorted(group, key=group.index) for group in groups]


def test_sparsity_section():
    sparsity = plan(pattern="8:16", targets="*.0.mlp.*", overrides=[{"modules": "*.up_proj", "dense": True}]).sparsity()
    assert sparsity == {
        "version": 1,
        "schemes": [
            {
                "pattern": "8:16",
                "prune": "activations",
                "score": "magnitude",
                "score_exponent": 1.0,
                "shift": "none",
                "variance_correction": False,
                "phase": "both",
                "output_scale": False,
                "output_bias": "none",
                "residual_rank": 0,
                "grouping": "neighbours",
                "modules": ["model.layers.0.mlp.gate_proj", "model.layers.0.mlp.down_proj"],
            }
        ],
        "input_groups": [["model.layers.0.mlp.gate_proj"], ["model.layers.0.mlp.down_proj"]],
        "rewritten": [],
    }


def test_the_head_is_never_pruned_even_if_it_is_tied():
    for tied in (True, False):
        config = LlamaConfig(**{**CONFIGS["llama"]().to_dict(), "tie_word_embeddings": tied})
        names = [linear.name for linear in plan(AutoModelForCausalLM.from_config(config), ignore=[]).linears]
        assert "lm_head" not in names
        assert len(names) == 14


def test_planning_leaves_no_hook():
    model = dense_model()
    plan(model)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_groups_that_do_not_divide_the_inputs():
    with pytest.raises(
        UserError, match=r"layers\.0\.self_attn\.q_proj has 32 input channels \(K\), which M = 5 .* 2:5"
    ):
        plan(pattern="2:5")
    message = r"layers\.0\.mlp\.down_proj has 64 input channels .* M = 48"
    with pytest.raises(UserError, match=message):
        plan(overrides=[{"modules": "*.down_proj", "pattern": "3:48"}])


@pytest.mark.parametrize(
    ("sparsity", "message"),
    [
        ({"targets": ["*.c_attn", "*.up_proj"]}, r'sparsity\.targets: "\*\.c_attn" matches no linear .*\*\.down_proj'),
        ({"ignore": ["*.uo_proj"]}, r'sparsity\.ignore: "\*\.uo_proj" matches no'),
        (
            {"overrides": [{"modules": "layers.0.*", "dense": True}]},
            r'overrides\[0\]\.modules: "layers\.0\.\*" matches',
        ),
        ({"ignore": ["*"]}, "leave every layer dense"),
        ({"targets": ["lm_head"], "ignore": []}, "leave every layer dense"),
    ],
)
def test_wildcards_that_do_nothing(sparsity, message):
    with pytest.raises(UserError, match=message):
        plan(**sparsity)


def test_conv1d_is_named():
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4)
    with pytest.raises(UserError, match=r"transformer\.h\.0\.attn\.c_attn is a Conv1D, not .*'\*\.c_attn' to sparsity"):
        plan(AutoModelForCausalLM.from_config(config))


def test_experts_are_named_and_can_be_left_out():
    config = MixtralConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"layers\.0\.mlp\.experts is \w*Experts\w*, which holds .* several experts"):
        plan(model)
    rest = plan(model, ignore=["*.experts"])
    assert {linear.name.rsplit(".", 1)[-1] for linear in rest.pruned} >= {"q_proj", "o_proj"}


def test_a_model_without_linears():
    config = GPT2Config(vocab_size=96, n_embd=32, n_layer=1, n_head=4)
    model = AutoModelForCausalLM.from_config(config)
    with pytest.raises(UserError, match=r"no torch\.nn\.Linear"):
        plan(model, targets="*.q_proj")
    assert isinstance(model.lm_head, torch.nn.Linear)


@pytest.mark.parametrize("wrapped", [True, False], ids=["by peft", "by transformers"])
def test_an_adapter_has_to_be_merged_first(wrapped):
    model, adapter = dense_model(), LoraConfig(r=2, target_modules=["q_proj"])
    if wrapped:
        model = get_peft_model(model, adapter)
    else:
        model.add_adapter(adapter)
    with pytest.raises(UserError, match=r"holds an adapter \(.*q_proj\) that is not merged .*; merge it first: peft\."):
        plan(model)
    if wrapped:
        assert plan(model.merge_and_unload()).pruned


def test_phases_are_planned_without_weights():
    with FakeTensorMode():
        assert plan(dense_model(), phase="decode").pruned
