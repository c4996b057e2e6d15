"""Proof of shapes: every group is cut by one unit, then by a random number, and the model run before it is offered.

A network whose Python code holds a size (``view(n, 768)``, ``x[:, :16]``, an assertion on the width) raises, or some op
makes another shape than the labels say. The groups to blame are found by the module in which it failed. Then, in turn:
a number that the module holds is read differently (`attributes`); groups that the code expects in step are tied, a head
to its share of the width, say; and where neither helps, they stay whole, and the line of code is named. What was
learnt about one module holds for all of its class. That the numbers are right too is `verify`'s matter; but where code
calculates with a number made from a width, the groups that change it are found here, and marked inexact.
"""

from __future__ import annotations

import operator
import os
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from autoprune.search_spaces.attributes import Attributes, Choice
from autoprune.search_spaces.runs import Run, Traced
from autoprune.search_spaces.shapes import OtherShape, ShapeCheck
from autoprune.search_spaces.tracer import ModulePaths, module_paths, plain_kernels
from autoprune.search_spaces.types import IntArray

if TYPE_CHECKING:
    from autoprune.search_spaces.space import SearchSpace

_MOST_FIXES = 16
"""Fixes tried for one class of modules; the likeliest come first."""
_MOST_ROUNDS = 1000
"""Repairs of one model. Each makes the space smaller or a choice that is made once: this is a net below that."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Where a cut model failed: the module, the one that had finished last, the line of code, the model's own words.

    `passed` is the number of ops that had gone well, `groups` are those whose size came out wrong.
    """

    module: str
    finished: str
    line: str
    message: str
    passed: int
    groups: tuple[int, ...] = ()


def prove(build: Callable[[], SearchSpace], traced: Traced, attributes: Attributes) -> SearchSpace:
    """Build spaces from what is tied so far, until one runs however it is cut.

    Args:
        build: makes the space from `traced.ties` and `attributes`, which are changed between calls.
    """
    prover = _Prover(build, traced, attributes)
    for _ in range(_MOST_ROUNDS):
        if (found := prover.failure()) is None:
            break
        prover.mend(*found)
    else:
        prover.give_up()
    prover.mark_rescaling()
    return prover.space


class _Prover:
    def __init__(self, build: Callable[[], SearchSpace], traced: Traced, attributes: Attributes) -> None:
        self.build, self.traced, self.attributes = build, traced, attributes
        self.space = build()
        self.hopeless: set[tuple[type | None, str]] = set()
        self.made: set[frozenset[tuple[object, int | None]]] = set()
        self.check: ShapeCheck

    # -- runs -----------------------------------------------------------------------------------------------------

    def failure(self) -> tuple[int, Run, Failure, list[int]] | None:
        """The first failure of all groups cut together: by one unit, to unlike numbers, to a single one.

        One unit less leaves widths that few constants divide, but two groups of one size then still have one size.
        """
        for run in self.traced.runs:
            for way in (0, 1, 2):
                groups = enumerate(self.space.groups)
                cut = [i for i, g in groups if way < 2 or (g.levels[0] == 1 and g.num_units > 2)]
                if not cut:
                    continue
                failure = self.attempt(way, run, cut)
                if failure is not None:
                    if run is not self.traced.runs[0] and self.attempt(way, run, ()) is not None:
                        break  # a run that differs from itself (random depth) proves nothing
                    return way, run, failure, cut
        return None

    def attempt(self, way: int, run: Run, cut: Iterable[int]) -> Failure | None:
        """Cut these groups and run."""
        space, chosen = self.space, set(cut)
        if not chosen and run is self.traced.runs[0]:
            return None
        units = np.array([g.num_units for g in space.groups], np.int64)
        fewer = (units - 1, _unlike(units), np.ones_like(units))[way]
        kept = [np.arange(fewer[i] if i in chosen else n) for i, n in enumerate(units)]
        paths = ModulePaths()
        check = self.check = ShapeCheck(run.trace, space.keep_atoms(kept))
        try:
            model = space.cut(kept, self.traced.model, share=True).train(run.training)
            with plain_kernels(), torch.no_grad(), run.seeded(), module_paths(model, paths), check:
                model(*run.args, **run.kwargs)
        except Exception as error:  # the model's own words are kept and reported
            words = str(error).strip().partition("\n")[0] or type(error).__name__
            wrong = self.groups_of(error.atoms) if isinstance(error, OtherShape) else ()
            return Failure(paths.running[-1], paths.finished, _line(error), words, check.passed, wrong)
        return None

    def groups_of(self, atoms: Sequence[IntArray]) -> tuple[int, ...]:
        """Groups that have units among these atoms."""
        found = {int(g) for a in atoms for g in np.unique(self.space.grouping.group_of_atom[a])}
        return tuple(sorted(found - {-1}))

    def mark_rescaling(self) -> None:
        """Mark groups inexact whose cut changes a number that the code calculates with, say ``sqrt(x.shape[-1])``.

        Found by halving: a cut run of all, then of each half of those that change something.
        """
        ties, grouping = self.traced.ties, self.space.grouping
        found: list[int] = []
        open_sets = [[i for i, g in enumerate(self.space.groups) if g.exact]]
        while open_sets:
            cut = open_sets.pop()
            if not cut or self.attempt(0, self.traced.runs[0], cut) or not self.check.numbers_changed:
                continue
            if len(cut) == 1:
                found += cut
            else:
                open_sets += [cut[: len(cut) // 2], cut[len(cut) // 2 :]]
        for index in found:
            ties.mark_inexact(grouping.atoms(index))
        if found:
            self.space = self.build()

    # -- repair -----------------------------------------------------------------------------------------------------

    def mend(self, way: int, run: Run, failure: Failure, cut: list[int]) -> None:
        """Make the space one that no longer fails so."""
        failing = self.culprits(way, run, failure, cut)
        ties, grouping = self.traced.ties, self.space.grouping
        if way == 2:  # a dimension of size 1 is treated in its own way (``squeeze``, ``einsum``): two units at least
            ties.keep_two(np.concatenate([grouping.atoms(i) for i in failing]))
        else:
            key = (self.attributes.kinds.get(failure.module), failure.line)
            if key not in self.hopeless and self.fixed(way, run, failure, list(failing)):
                return
            self.hopeless.add(key)
            pinned = dict(failing)
            for other in self.alike(failure.module, list(failing)):
                for index in other:
                    found = None if index in pinned else self.attempt(way, run, [index])
                    if found is not None and found.line == failure.line:
                        pinned[index] = found
            for index, found in pinned.items():
                ties.module, ties.op = found.module, ""
                ties.pin(grouping.atoms(index), f"the code needs the full size ({found.line}: {found.message})")
        self.space = self.build()

    def give_up(self) -> None:
        """Pin every group of cuts that fail still, until none does."""
        while (found := self.failure()) is not None:
            _, _, failure, cut = found
            for index in cut:
                self.traced.ties.pin(
                    self.space.grouping.atoms(index), f"cutting it was not understood ({failure.line})"
                )
            self.space = self.build()

    def culprits(self, way: int, run: Run, failure: Failure, cut: list[int]) -> dict[int, Failure]:
        """Of the groups that were cut, those that fail alone, or else some that fail together."""
        for suspects in self.suspects(failure, cut):
            # with unlike numbers some groups are not cut at all: what they do alone shows with one unit less
            alone = {i: f for i in suspects if (f := self.attempt(way, run, [i]) or self.attempt(0, run, [i]))}
            if alone:
                return alone
            if len(suspects) > 1 and self.attempt(way, run, suspects):
                return dict.fromkeys(suspects, failure)
        return dict.fromkeys(cut, failure)

    def suspects(self, failure: Failure, cut: list[int]) -> Iterator[list[int]]:
        """Who may be to blame, the likeliest first: whose size is wrong, what the failing module holds, what came
        out of the last one, all.
        """
        wrong = [i for i in failure.groups if i in cut]
        if wrong:
            yield wrong
        for module in (failure.module, failure.finished):
            near = [i for i in cut if self.space.roles(i, module)]
            if module and near:
                yield near
        yield cut

    def fixed(self, way: int, run: Run, failure: Failure, failing: list[int]) -> bool:
        """Try fixes until the failing groups run, or fail further on."""
        atoms = [int(self.space.grouping.first_atoms(i)[0]) for i in failing]
        before = self.space
        for count, undo in enumerate(self.fixes(failure, failing)):
            again = {int(self.space.grouping.group_of_atom[a]) for a in atoms} - {-1}
            left = self.attempt(way, run, again) if again else failure
            if left is None or (left.passed > failure.passed and left.module != failure.module):
                return True
            undo()
            self.space = before
            if count == _MOST_FIXES:
                break
        return False

    def fixes(self, failure: Failure, failing: list[int]) -> Iterator[Callable[[], None]]:
        """Apply one fix after the other to `space`; each yields how to undo it beside that."""
        attributes, grouping = self.attributes, self.space.grouping
        others: list[Choice] = []
        alone: list[Choice] = []
        for path in self.around(failure):
            others, alone = map(operator.add, (others, alone), attributes.alternatives(path, grouping))
        for choice in others:
            yield from self.chosen(choice)
        ties = self.traced.ties
        mark = ties.mark()
        if self.tie(failing):
            for other in self.alike(failure.module, failing):
                self.tie(other)
            self.space = self.build()
            yield lambda: ties.back_to(mark)
        for choice in alone:
            yield from self.chosen(choice)

    def chosen(self, choice: Choice) -> Iterator[Callable[[], None]]:
        """Make a choice, unless it was made before: so the search for fixes comes to an end."""
        attributes = self.attributes
        before, made = attributes.chosen, frozenset(choice.items())
        if made not in self.made:
            attributes.chosen = {**before, **choice}
            self.made.add(made)
            self.space = self.space.with_sites(attributes.sites(self.space.grouping))

            def undo() -> None:
                attributes.chosen = before
                self.made.discard(made)

            yield undo

    def around(self, failure: Failure) -> list[str]:
        """The failing module, the last one that finished, and those that hold them."""
        paths = [failure.module, failure.finished]
        while paths[-1]:
            paths.append(paths[-1].rpartition(".")[0])
        return list(dict.fromkeys(paths))

    def tie(self, groups: Sequence[int]) -> bool:
        """Tie groups in step: the fewest units rule, the others go with them in equal runs."""
        grouping = self.space.grouping
        ordered = sorted(groups, key=lambda i: grouping.groups[i].num_units)
        num = grouping.groups[ordered[0]].num_units
        if len(groups) < 2 or any(grouping.groups[i].num_units % num for i in ordered):
            return False
        anchor = grouping.first_atoms(ordered[0])
        for index in ordered[1:]:
            self.traced.ties.unite(grouping.first_atoms(index).reshape(num, -1), anchor[:, None])
        return True

    def alike(self, module: str, groups: Sequence[int]) -> Iterator[list[int]]:
        """For every other module of the same class: the groups that play there the roles that `groups` play here."""
        while module and not all(self.space.roles(i, module) for i in groups):
            module = module.rpartition(".")[0]
        if not module:
            return
        kind = self.attributes.kinds[module]
        wanted = [self.space.roles(i, module) for i in groups]
        for path, other in self.attributes.kinds.items():
            if other is kind and path != module:
                here = {i: roles for i in range(len(self.space.groups)) if (roles := self.space.roles(i, path))}
                same = [[i for i, roles in here.items() if roles & role] for role in wanted]
                if all(len(found) == 1 for found in same):
                    yield [found[0] for found in same]


def _unlike(units: IntArray) -> IntArray:
    """A random number of kept units per group, another one for each of a run of groups of one size."""
    rng = np.random.default_rng(0)
    kept = units.copy()
    for num in np.unique(units):
        alike = np.flatnonzero(units == num)
        kept[alike] = np.resize(rng.permutation(np.arange(min(2, num - 1), num + 1)), len(alike))
    return kept


def _line(error: BaseException) -> str:
    """``package/file.py:12``: the innermost line that is the model's, or of a library function it called."""
    own = os.path.dirname(__file__)
    line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        name = frame.f_code.co_filename
        if (
            os.path.dirname(name) != own
            and f"{os.sep}torch{os.sep}_" not in name
            and "nn/modules/module.py" not in name
        ):
            line = f"{name.rpartition('site-packages' + os.sep)[2]}:{number}"
    path, _, number_ = line.rpartition(":")
    return line if not os.path.isabs(path) else f"{os.path.basename(path)}:{number_}"
