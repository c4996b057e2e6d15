"""All small networks, and what each must offer: a group that disappears is a regression even if all stays exact."""

from __future__ import annotations

from typing import Any

from tests.search_spaces import nets, nets_channels, nets_modules, nets_tokens

PATTERNS: dict[str, tuple[Any, Any]] = {
    **nets.NETS,
    **nets_channels.NETS,
    **nets_tokens.NETS,
    **nets_modules.NETS,
}

# group name -> units
EXPECTED = {
    "plain": {"0.0": 16, "1.0": 24},
    "residual": {"stem.0": 16, "a.0": 16},
    "dense": {"a.0": 16, "b.0": 16},
    "inverted_residual": {"expand.0": 16, "squeeze": 8},
    "grouped": {"a.0": 4, "b.0": 8},
    "shuffle": {"a.0": 8, "c.0": 8},
    "split": {"a.0": 16, "b.0": 16, "c": 8},
    "norms": {"a": 4, "b": 24},
    "attention": {"embed": 32, "qkv": 4, "up": 64},
    "baked": {"a.0": 16},
    "transposed": {"a.0": 16, "up": 4, "grouped": 6},
    "shared": {"stem.0": 16, "up": 24},
    "auxiliary": {"a.0": 16, "b.0": 24},
    "exotic": {"a.0": 16},
    "shuffled_twice": {"b.0": 16},
    "constants": {"d.0": 16},
    "pixels": {"a.0": 8, "b.0": 4},
    "spatial_gate": {"a.0": 16},
    "normalised": {"a.parametrizations.weight": 16, "b.parametrizations.weight": 24},
    "unequal_pieces": {"a.0": 8, "b.0": 16, "c.0": 16},
    "middle": {"a.0": 12, "b.0": 16},
    "shared_by_heads": {"embed": 16, "qkv": 4},
    "method_of_another": {"qkv": 4, "relative.mlp.0": 12},
    "one_key_for_all": {"q": 8, "v": 10},
    "windows": {"a.0": 16, "b.0": 12, "mix": 8, "c.0": 16},
    "standardised_by_batch_norm": {"a.0": 16, "b": 24},
    "replaced_buffer": {"a": 16, "b": 24},
    "channel_attention": {"a.0": 16},
    "c2f": {"stem.0": 12, "enter.0": 16, "inner.0.0.0": 16, "inner.1.0.0": 16, "leave.0": 20},
    "slices": {"a.0": 8, "partial.0": 8, "b.0": 20},
    "upsampler": {"a.0": 12, "b.0": 8, "c.0": 10},
    "group_norm_grouped": {"a": 4, "b.0": 6},
    "flattened": {"a.0": 12, "mix": 40, "c.0": 14, "d": 20},
    "functional": {"kernel": 16},
    "sequence1d": {"a": 16, "gated": 16, "up": 10},
    "volume": {"a": 16, "b": 12},
    "width_sums": {"a.0": 16, "b.0": 20, "c.0": 24},
    "response_norm": {"b.0": 12},
    "single_head": {"embed": 20, "q": 16, "v": 24},
    "grouped_query": {"embed": 20, "q": 2, "kv2": 6},
    "repeated_heads": {"embed": 20, "q": 2},
    "einsum": {"embed": 20, "q": 6},
    "rotary": {"embed": 20, "q": 6},
    "width_norms": {"key": 16, "a": 20, "b": 24, "c": 28},
    "unbiased_variance": {"a": 16, "b": 24},
    "scalar_of_width": {"a": 16, "q": 24},
    "language_model": {"tokens": 24, "up": 40},
    "library_attention": {"embed": 2, "up": 40, "layer.linear1": 36, "after": 20},
    "standardised": {"a": 16, "b": 24},
    "parametrized": {"a.parametrizations.weight": 16, "b": 20, "c.parametrizations.weight": 24, "d": 28},
    "recurrent": {"a": 16, "lstm": 10, "b": 18, "c": 14, "gru": 9, "d": 11, "rnn": 7, "e": 13},
    "cells": {"a": 16, "lstm": 10, "gru": 9},
    "many_inputs": {"image.0": 16, "tokens": 20, "join": 24},
    "data_dependent": {"a.0": 16, "c.0": 20},
    "indices": {"a": 16, "b": 20},
}
