"""A row of a batch is what it is alone, whatever its neighbours are and on whichever side it is padded."""

import pytest
import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, OPTConfig, Qwen2MoeConfig

from nm_export import Recipe, UserError, export_onnx, sparsify
from nm_export.calibration.bias import calibrate_bias
from nm_export.calibration.calibrate import calibrate
from nm_export.modeling import NMSparseLinear
from nm_export.modeling.configuration_nm_sparse import SCHEME_DEFAULTS
from nm_export.plan import make_plan
from nm_export.verification.modules import capture_inputs, record_modules
from tests.tiny_models import _SIZES, CONFIGS, token_ids

_TINY = {**_SIZES, "pad_token_id": 0}
CONFIGURATIONS = {
    "llama": CONFIGS["llama"],
    "qwen2": CONFIGS["qwen2"],
    "gemma3": CONFIGS["gemma3"],
    "gpt_neox": lambda: GPTNeoXConfig(**{k: v for k, v in _TINY.items() if k != "num_key_value_heads"}),
    "opt": lambda: OPTConfig(
        vocab_size=96,
        hidden_size=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        word_embed_proj_dim=32,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "qwen2_moe": lambda: Qwen2MoeConfig(
        **_TINY,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
}
FLATTENED = {"opt": ["*.fc1", "*.fc2"], "qwen2_moe": ["*.shared_expert.*_proj"]}
ATTENTION = {"opt": ["*.self_attn.*_proj"], "qwen2_moe": ["*.self_attn.*_proj"]}
SHORT, LONG = token_ids(1, 5, seed=1), token_ids(1, 9, seed=2)


def dense(architecture):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGURATIONS[architecture]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(4)
    return model


def sparse(architecture, targets=None, **scheme):
    model = dense(architecture)
    ignore = ["lm_head", "*.experts"] if architecture == "qwen2_moe" else ["lm_head"]
    model = sparsify(model, pattern="4:8", ignore=ignore, **({"targets": targets} if targets else {}), **scheme)
    calibrate(model, token_ids(3, 8, seed=3))
    return model


def padded(side):
    row, length = torch.zeros(1, LONG.shape[1], dtype=torch.long), SHORT.shape[1]
    kept = slice(-length, None) if side == "left" else slice(length)
    row[:, kept] = SHORT
    return torch.cat([row, LONG]), kept


def assert_rows_are_alone(model, side):
    ids, kept = padded(side)
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        for row, alone in ((together[0, kept], SHORT), (together[1], LONG)):
            torch.testing.assert_close(row, model(input_ids=alone).logits[0], rtol=1e-3, atol=1e-3)


SCHEMES = {
    "both": {"shift": "dynamic_mean"},
    "prefill": {"phase": "prefill", "shift": "dynamic_median"},
    "decode": {"phase": "decode", "shift": "static_channel"},
}


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
@pytest.mark.parametrize("architecture", CONFIGURATIONS)
def test_rows_of_a_padded_batch(architecture, scheme):
    model = sparse(architecture, **scheme)
    for side in ("left", "right"):
        assert_rows_are_alone(model, side)
    ids, _ = padded("left")
    options = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}
    together = model.generate(ids, attention_mask=(ids != 0).long(), **options)[:, LONG.shape[1] :]
    for row, alone in zip(together, (SHORT, LONG), strict=True):
        assert torch.equal(row, model.generate(alone, **options)[0, alone.shape[1] :])


@pytest.mark.parametrize("architecture", FLATTENED)
@pytest.mark.parametrize("phase", ["decode", "prefill"])
def test_phases_are_those_of_the_call_where_tokens_come_in_one_list(architecture, phase):
    model = sparse(architecture, FLATTENED[architecture], phase=phase)
    prompts = token_ids(2, 8, seed=3)

    def step(rows):  # a prompt, then one token on its cache
        cache = model(input_ids=rows, use_cache=True).past_key_values
        return model(input_ids=rows[:, -1:], past_key_values=cache).logits

    with torch.no_grad():
        together = step(prompts)
        alone = torch.cat([step(prompts[:1]), step(prompts[1:])])
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
        with model.dense():
            dense = step(prompts)
    assert not torch.allclose(together, dense, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("architecture", FLATTENED)
def test_a_graph_cannot_tell_phases_where_tokens_come_in_one_list(architecture, tmp_path):
    recipe = Recipe(model={"source": "here"}, sparsity={"phase": "decode", "targets": FLATTENED[architecture]})
    with pytest.raises(UserError, match=r"reads \[6, 32\] for 2 sequences .* or set onnx\.enabled to false"):
        make_plan(dense(architecture), recipe)
    model = sparse(architecture, FLATTENED[architecture], phase="decode")
    with pytest.raises(UserError, match="an ONNX graph cannot tell"):
        export_onnx(model, tmp_path, tokenizer_dir=tmp_path)


@pytest.mark.parametrize("architecture", FLATTENED)
def test_noncausal_scores_are_refused_where_tokens_come_in_one_list(architecture):
    with pytest.raises(UserError, match=r"layers\.0\..* reads \[6, 32\] for 2 sequences .* give it score: clact in"):
        sparse(architecture, FLATTENED[architecture], score="clact_noncausal")
    sparse(architecture, ATTENTION[architecture], score="clact_noncausal")  # these read [batch, tokens, K]


@pytest.mark.parametrize("scheme", [{"phase": "decode"}, {"score": "clact_noncausal"}], ids=str)
def test_a_linear_refuses_a_list_of_tokens_when_it_needs_sequences(scheme):
    module = NMSparseLinear(torch.nn.Linear(16, 4), SCHEME_DEFAULTS | {"pattern": "4:8", **scheme}, "mlp.fc1")
    with pytest.raises(ValueError, match=r"mlp\.fc1 reads \[6, 16\], the tokens of all sequences in one list"):
        module(torch.randn(6, 16))
    module(torch.randn(1, 6, 16))


def test_noncausal_scores_are_those_of_each_row():
    model = sparse("llama", score="clact_noncausal")
    batch = torch.cat([LONG, token_ids(1, 9, seed=7)])
    with torch.no_grad():
        together = model(input_ids=batch, attention_mask=torch.ones_like(batch)).logits
        for row, ids in zip(together, batch, strict=True):
            torch.testing.assert_close(row, model(input_ids=ids[None]).logits[0], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_noncausal_scores_and_padding_are_refused(side):
    model = sparse("llama", score="clact_noncausal")
    ids, _ = padded(side)
    for call in (model, model.forward):
        with pytest.raises(ValueError, match="clact_noncausal looks at every token of a sequence"), torch.no_grad():
            call(input_ids=ids, attention_mask=(ids != 0).long())


@pytest.mark.parametrize("architecture", FLATTENED)
def test_modules_that_read_lists_of_tokens_are_verified(architecture):
    model = sparse(architecture, shift="dynamic_mean")
    inputs = capture_inputs(model, token_ids(1, 7))
    assert inputs.keys() == model.nm_modules().keys()
    for name, record in record_modules(model, inputs).items():
        assert inputs[name].shape[:2] == (1, 7), name
        assert record.output.shape[:2] == record.kept.shape[:2] == (1, 8), name


def test_biases_of_lists_of_tokens_are_held_out_by_sequence(monkeypatch):
    seen = []

    def noted(fitted, held_out):
        seen.append((len(fitted), len(held_out)))
        return torch.zeros(fitted.shape[-1])

    monkeypatch.setattr("nm_export.calibration.bias.robust_bias", noted)
    model = sparse("opt", output_bias="calibrated")
    seen.clear()
    calibrate_bias(model, list(model.nm_modules()), token_ids(6, 8))  # 4 sequences to fit, 2 of them held out
    assert seen == [(16, 16)] * len(model.nm_modules())
