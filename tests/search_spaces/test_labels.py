"""Label arithmetic: views, grids, and what gets united."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.search_spaces.labels import Field, Ties, reshape, simplify


def field_over(ties: Ties, dim: int, size: int) -> Field:
    return Field((dim,), ties.fresh(size))


def test_split_and_join_keep_every_atom() -> None:
    ties = Ties()
    channels = field_over(ties, 1, 12)
    (grid,) = reshape(ties, (channels,), (2, 12, 5), (2, 3, 4, 5))
    assert grid.dims == (1, 2)
    (again,) = reshape(ties, (grid,), (2, 3, 4, 5), (2, 12, 5))
    assert np.array_equal(again.atoms, channels.atoms)
    assert len(ties.solve().pinned) == 13  # nothing was united


def test_flattening_repeats_atoms() -> None:
    ties = Ties()
    (flat,) = reshape(ties, (field_over(ties, 1, 3),), (2, 3, 2, 2), (2, 12))
    assert flat.atoms.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]


def test_batch_and_heads_joined_keep_the_grid_with_the_width() -> None:
    ties = Ties()
    (grid,) = reshape(ties, (field_over(ties, 2, 6),), (2, 5, 6), (2, 5, 3, 2))
    (joined,) = reshape(ties, (grid.moved([1, 3]),), (2, 3, 5, 2), (6, 5, 2))
    assert joined.dims == (0, 2)
    assert joined.atoms.tolist() == [[1, 2], [3, 4], [5, 6]] * 2
    rows = ties.axis((joined,), 0)
    assert rows is not None
    assert len(set(ties.solve().component[1:].tolist())) == 3  # three heads


def test_two_labelled_dimensions_joined_keep_the_larger() -> None:
    ties = Ties()
    small, large = field_over(ties, 0, 2), field_over(ties, 1, 3)
    (left,) = reshape(ties, (small, large), (2, 3), (6,))
    assert left.atoms.tolist() == [3, 4, 5, 3, 4, 5]
    assert [pin.atoms.tolist() for pin in ties.pins] == [[1, 2]]


def test_simplify_drops_dimensions_without_change_but_never_all() -> None:
    assert simplify(np.array([[1, 1], [2, 2]]), [4, 5]).dims == (4,)  # type: ignore[union-attr]
    assert simplify(np.array([[1, 2], [1, 2]]), [4, 5]).dims == (5,)  # type: ignore[union-attr]
    whole = simplify(np.array([[1, 1], [1, 1]]), [4, 5])
    assert whole is not None
    assert whole.atoms.tolist() == [1, 1]
    assert simplify(np.zeros((2, 2), np.int64), [4, 5]) is None


def test_meeting_what_stays_pins() -> None:
    ties = Ties()
    atoms = ties.fresh(3)
    ties.unite(atoms, np.array([0, atoms[2], atoms[2]]), "why")
    solution = ties.solve()
    assert solution.pinned[solution.component[atoms]].tolist() == [True, False, False]
    assert solution.component[atoms[1]] == solution.component[atoms[2]]
    assert ties.pins[0].reason == "why"


@pytest.mark.parametrize("moved", [[3, 1], [1, 3]])
def test_moved_fields_keep_their_dimensions_ascending(moved: list[int]) -> None:
    f = Field((0, 1), np.array([[1, 2, 3], [4, 5, 6]])).moved(moved)
    assert f.dims == (1, 3)
    assert f.atoms.shape == ((3, 2) if moved == [3, 1] else (2, 3))
