"""An encoder and a decoder of the transformers library: heads, MLP widths and the residual width, exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from autoprune.search_spaces import trace
from tests.search_spaces.nets import randomised

transformers = pytest.importorskip("transformers")

SIZES = {"vocab_size": 61, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
TOKENS = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(0))


def encoder() -> Any:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**SIZES))


def decoder() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, num_key_value_heads=2))


@pytest.mark.parametrize(("make", "heads"), [(encoder, 4), (decoder, 2)])
@pytest.mark.parametrize("mask", [None, torch.ones(2, 9, dtype=torch.long)], ids=["no mask", "mask"])
def test_heads_widths_and_residual_width(make: Any, heads: int, mask: Tensor | None) -> None:
    model = randomised(make())
    space = trace(model, {"input_ids": TOKENS} | ({} if mask is None else {"attention_mask": mask}), align=1)
    units = sorted(g.num_units for g in space.groups)
    assert units == sorted([heads, heads, 56, 56, 48] + [48] * (make is encoder))  # the pooler has its own width
    for ratio in (0.1, 0.5, 0.9):
        candidate = space.candidate(ratio)
        assert space.verify(candidate) <= 1e-5
        subnet = space.materialise(candidate)
        assert type(subnet(TOKENS)) is type(model(TOKENS))  # an output object, not a tuple
        assert space.costs(candidate).params == sum(p.numel() for p in subnet.parameters())
        # the counter does not know the fused op on a CPU
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            subnet(TOKENS)
        assert 2 * space.costs(candidate).macs == counter.get_total_flops()


def test_generation_with_a_cache() -> None:
    """The cut decoder generates with its cache what it says without one."""
    space = trace(randomised(decoder()), {"input_ids": TOKENS}, align=1)
    subnet: Any = space.materialise(space.candidate(0.5)).eval()
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    cached = subnet.generate(TOKENS, **settings)
    assert cached.shape == (2, 14)
    torch.testing.assert_close(cached, subnet.generate(TOKENS, **settings, use_cache=False))
