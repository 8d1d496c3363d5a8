"""Kind: somebody else's interface is matched by name, and what is unknown is swallowed.

A layer understands an argument, knows that it is for others, or refuses it. The names that
transformers uses today stand in a table: a new one fails here before it is dropped in silence.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from support.models import cache_name, relative
from support.tiny_models import TEXT_FAMILIES, tiny_model
from transformers import DynamicCache
from transformers.utils.generic import TransformersKwargs

from secateurs import (
    HeadMask,
    ModuleMask,
    NeuronMask,
    SecateursError,
    SparsityPlan,
    apply,
    convert,
    find_sites,
)
from secateurs.conversion.modules import Layer
from secateurs.conversion.transformers_attention import (
    FOR_OTHERS,
    FOR_OTHERS_IN_ATTENTION,
    attention_forward,
)
from secateurs.errors import OperandError

# What a layer of ours does with every argument that transformers may hand to a stock one.
UNDERSTOOD = {
    "hidden_states",
    "attention_mask",
    "position_embeddings",
    "cache",
    "past_key_values",
    "is_causal",
}
# What only the layers of some architectures understand.
ALSO_UNDERSTOOD = {"t5": {"position_bias"}, "gated t5": {"position_bias"}}
REFUSED = {
    "encoder_decoder_position_bias",
    "encoder_hidden_states",
    "encoder_attention_mask",
    "output_attentions",
    "output_router_logits",
    "cu_seq_lens_q",
    "cu_seq_lens_k",
    "max_length_q",
    "max_length_k",
    "seq_idx",
}
PLAN = SparsityPlan(
    {
        "layers.0.heads": HeadMask(torch.tensor([False, True, True, True])),
        "layers.1.heads": HeadMask(torch.tensor([False, False, True, False])),
        "layers.0.neurons": NeuronMask(torch.arange(96) % 3 == 0),
        "layers.2.attention": ModuleMask(torch.tensor(False)),
    }
)
PROMPT = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("family", [*TEXT_FAMILIES, "vit"])
def test_every_argument_of_a_stock_layer_is_decided(family):
    model = tiny_model(family)
    layer = find_sites(model).layer(model, 0)
    taken = inspect.signature(type(layer).forward).parameters.values()
    named = {p.name for p in taken if p.kind is p.POSITIONAL_OR_KEYWORD} - {"self"}
    through = set(TransformersKwargs.__annotations__)
    understood = UNDERSTOOD | ALSO_UNDERSTOOD.get(family, set())
    assert named | through <= understood | REFUSED | FOR_OTHERS
    ours = inspect.signature(Layer.forward).parameters.values()
    # The bias that a layer hands to its own attention has no name of transformers'.
    told = {p.name for p in ours if p.kind is not p.VAR_KEYWORD}
    assert told - {"self", "positional", "scores_bias"} == UNDERSTOOD


@pytest.mark.parametrize("name", [*sorted(REFUSED), "position_bias", "an_argument_of_next_year"])
def test_an_argument_that_is_not_understood_is_refused(name):
    layer = convert(tiny_model("bert"), PLAN).encoder.layer[0]
    states = torch.randn(1, 4, 64)
    layer(states, **{name: None})
    layer(states, **{name: False})
    with pytest.raises(OperandError, match=f"BertLayer understands, got {name}="):
        layer(states, **{name: torch.ones(1)})


def test_a_positional_argument_is_refused_by_its_name():
    layer = convert(tiny_model("bert"), PLAN).encoder.layer[0]
    with pytest.raises(OperandError, match=r"got encoder_hidden_states=a tensor of shape \(1, 4"):
        layer(torch.randn(1, 4, 64), None, torch.randn(1, 4, 64))


@pytest.mark.parametrize("family", ["gpt2", "t5", "gemma3_text"])
def test_arguments_in_another_order_are_known_by_their_names(family):
    fast = convert(tiny_model(family), PLAN)
    layer, states = [m for m in fast.modules() if isinstance(m, Layer)][1], torch.randn(1, 4, 64)
    hidden = torch.tensor([[True, True, False, True]])
    place = (hidden,) if family == "t5" else (None, hidden)
    by_place, by_name = layer(states, *place), layer(states, attention_mask=hidden)
    by_place, by_name = (x[0] if isinstance(x, tuple) else x for x in (by_place, by_name))
    assert torch.equal(by_place, by_name)
    assert not torch.equal(by_place, (layer(states)[0] if family == "t5" else layer(states)))
    if family == "gemma3_text":
        return
    with pytest.raises(OperandError, match="got encoder_hidden_states="):
        layer(states, *place, *([None] * (2 - len(place))), torch.ones(1))


@pytest.mark.parametrize("name", sorted(FOR_OTHERS))
def test_what_is_for_others_changes_nothing(name):
    layer = convert(tiny_model("bert"), PLAN).encoder.layer[0]
    states = torch.randn(1, 4, 64)
    assert torch.equal(layer(states, **{name: torch.ones(1)}), layer(states))


def test_the_registered_attention_refuses_what_it_does_not_understand():
    q = torch.randn(1, 2, 4, 16)
    attention = torch.nn.Module()
    for name in FOR_OTHERS_IN_ATTENTION:
        attention_forward(attention, q, q, q, None, **{name: 4})
    for name in ("s_aux", "position_bias", "head_mask", "cu_seq_lens_q"):
        attention_forward(attention, q, q, q, None, **{name: None})
        with pytest.raises(OperandError, match=f"understands, got {name}=0.5"):
            attention_forward(attention, q, q, q, None, **{name: 0.5})


GENERATION = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "sampling": {"do_sample": True, "top_k": 20},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "chunked prefill": {"prefill_chunk_size": 2},
    "repetition penalty": {"repetition_penalty": 1.5},
}


@pytest.mark.parametrize("way", GENERATION)
@pytest.mark.parametrize("padded", [True, False])
def test_generation_equals_the_masked_models(way, padded):
    if padded and way == "prompt lookup":
        pytest.skip("transformers looks prompts up for one sequence only")
    model = tiny_model("llama")
    prompt = PROMPT if padded else PROMPT[:1]
    mask = torch.ones_like(prompt)
    if padded:
        mask[1, :2] = 0
    options = {
        "attention_mask": mask,
        "max_new_tokens": 8,
        "do_sample": False,
        "pad_token_id": 0,
        "eos_token_id": 99,
        **GENERATION[way],
    }
    answers = []
    for made in (apply(model, PLAN), convert(model, PLAN)):
        torch.manual_seed(0)
        answers.append(made.generate(prompt, **options))
    assert torch.equal(*answers)


def test_a_cache_counts_what_it_has_seen():
    fast = convert(tiny_model("llama"), PLAN)
    name = cache_name(fast)
    seen = getattr(fast(PROMPT, use_cache=True), name)
    assert seen.get_seq_length() == 6
    kept = DynamicCache(config=fast.config)
    fast(PROMPT[:, :4], use_cache=True, **{name: kept})
    fast(PROMPT[:, 4:], use_cache=True, **{name: kept})
    assert kept.get_seq_length() == 6


def test_causality_follows_the_call_and_the_config():
    plan = SparsityPlan({"layers.0.heads": PLAN.masks["layers.0.heads"]})
    mask = torch.ones_like(PROMPT)
    mask[0, 4:] = 0
    for setting, inputs in (
        ({"is_causal": False}, {}),
        ({}, {"is_causal": False}),
        ({"is_causal": True}, {"is_causal": False}),
    ):
        model = tiny_model("llama", **setting)
        for given in (None, mask):
            batch = {"input_ids": PROMPT, "attention_mask": given, **inputs}
            with torch.no_grad():
                try:
                    want = apply(model, plan)(**batch).logits
                except TypeError:
                    pytest.skip("this transformers takes no is_causal")
                got = convert(model, plan)(**batch).logits
            visible = mask.bool() if given is not None else torch.ones_like(mask).bool()
            assert relative(got[visible], want[visible]) < 1e-5


def test_an_encoder_made_causal_by_the_call_does_not_run_whole():
    fast = convert(tiny_model("bert"), SparsityPlan()).encoder.layer[0]
    states = torch.randn(1, 5, 64)
    with torch.no_grad():
        changed = states.clone()
        changed[:, -1] += 1
        first = [fast(x, is_causal=True)[:, 0] for x in (states, changed)]
        assert torch.equal(*first)
        assert not torch.equal(fast(states)[:, 0], fast(changed)[:, 0])


def test_packed_sequences_are_refused_not_attended_across():
    fast = convert(tiny_model("llama"), PLAN)
    ends = torch.tensor([0, 3, 6], dtype=torch.int32)
    with pytest.raises(SecateursError, match="got cu_seq_lens_q="):
        fast(PROMPT[:1], cu_seq_lens_q=ends, cu_seq_lens_k=ends, max_length_q=3, max_length_k=3)
