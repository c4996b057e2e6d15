"""Data from a function of the user."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from autoprune.data import load_data
from autoprune.search_spaces.errors import UserError


def sizes(data: Any) -> tuple[int, int, int | None]:
    return data.train.num_samples, data.search.num_samples, None if data.test is None else data.test.num_samples


MADE: Any = None


def make() -> Any:
    return MADE


def make_wrongly() -> Any:
    raise RuntimeError("the disk is on the moon")


def loader(count: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(float(count)).reshape(-1, 1), torch.arange(count)), batch_size=4)


def test_functions_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    spec, module = f"{__name__}:make", sys.modules[__name__]
    for made, expected in (
        ((loader(20), loader(6), loader(5)), (20, 6, 5)),
        ((loader(20), None, None), (17, 3, None)),
        ({"train": loader(20), "test": loader(5)}, (17, 3, 5)),
    ):
        monkeypatch.setattr(module, "MADE", made)
        data = load_data(spec, search_size=3)
        assert sizes(data) == expected
        assert data.name == spec
    monkeypatch.setattr(module, "MADE", data)
    assert load_data(spec) is data


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (None, "returned a NoneType"),
        ((1, 2), "returned a tuple"),
        ({"train": [1], "valid": [2]}, "returned a dict with 'train', 'valid'"),
        ({"test": [1]}, "must return .train, search, test. loaders"),
    ],
)
def test_functions_that_return_something_else(monkeypatch: pytest.MonkeyPatch, made: Any, message: str) -> None:
    monkeypatch.setattr(sys.modules[__name__], "MADE", made)
    with pytest.raises(UserError, match=message):
        load_data(f"{__name__}:make")


def test_functions_that_fail_keep_their_message() -> None:
    with pytest.raises(UserError, match="RuntimeError: the disk is on the moon") as caught:
        load_data(f"{__name__}:make_wrongly")
    assert isinstance(caught.value.__cause__, RuntimeError)
