"""Who proposes the next candidate: agents behind one ask-and-tell interface, made by name.

Agents know a space and a budget, never a network, a data set or a study. Imports `autoprune.search_spaces` only.
"""

from __future__ import annotations

if __name__ != "autoprune.agents":
    raise ImportError(
        f"This package is called autoprune.agents, but was imported as {__name__!r}. "
        "Write `import autoprune.agents`, and install the checkout first: pip install -e ."
    )

import importlib
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium

from autoprune.agents.base import Agent, Trial, trial_rng
from autoprune.search_spaces.budget import Budget
from autoprune.search_spaces.errors import UserError, unknown
from autoprune.search_spaces.projection import Space

__all__ = ["AGENTS", "Agent", "Trial", "agent_class", "make_agent", "option_names", "trial_rng"]

AGENTS: dict[str, str] = {
    "annealing": "autoprune.agents.annealing:AnnealingAgent",
    "auto": "autoprune.agents.auto:AutoAgent",
    "bnb": "autoprune.agents.bnb:BnBAgent",
    "cmaes": "autoprune.agents.cmaes:CMAESAgent",
    "ddpg": "autoprune.agents.ddpg:DDPGAgent",
    "evolution": "autoprune.agents.evolution:EvolutionAgent",
    "gp": "autoprune.agents.gp:GPAgent",
    "greedy": "autoprune.agents.greedy:GreedyAgent",
    "kl": "autoprune.agents.kl:KLAgent",
    "nsga2": "autoprune.agents.nsga2:NSGA2Agent",
    "random": "autoprune.agents.random:RandomAgent",
    "sb3:ddpg": "autoprune.agents.sb3:SB3DDPGAgent",
    "sb3:sac": "autoprune.agents.sb3:SACAgent",
    "sb3:td3": "autoprune.agents.sb3:TD3Agent",
    "tpe": "autoprune.agents.tpe:TPEAgent",
    "uniform": "autoprune.agents.uniform:UniformAgent",
}
"""Name -> module and class, loaded when first used: an agent's library costs nothing where it is not asked for."""

_CLUSTER_OPTIONS = ("clusters", "cluster_trials")
"""Options that every agent with a warm start takes (`ClusteredAgent`)."""


gymnasium.register("autoprune/Pruning-v0", entry_point="autoprune.agents.env:PruningEnv")


def make_agent(name: str, space: Space, budget: Budget, *, seed: int, **options: Any) -> Agent:
    """Return the agent called `name`; docs/agents.md lists names and options.

    Raises:
        UserError: an unknown name or option, a bad value, or a budget that no subnet fits.
    """
    taken = option_names(name)
    for option in options:
        if not taken:
            raise UserError(f"Agent {name!r} takes no options, but got {option!r}.")
        if option not in taken:
            raise unknown(f"option of agent {name!r}:", option, taken)
    make: Callable[..., Agent] = agent_class(name)
    if "clusters" in options:
        make = partial(importlib.import_module("autoprune.agents.clusters").ClusteredAgent, make)
    elif "cluster_trials" in options:
        raise UserError("`cluster_trials` of an agent needs the option `clusters` beside it, for example clusters=16.")
    return make(space, budget, seed=seed, **options)


def option_names(name: str) -> list[str]:
    """Return the names of the options that the agent called `name` takes; `costs` among them: it can look for a front.

    Raises:
        UserError: no agent has that name.
    """
    kind = agent_class(name)
    own = [each for each in inspect.signature(kind).parameters if each not in ("space", "budget", "seed")]
    warm: type[Agent] = importlib.import_module("autoprune.agents.warm").WarmAgent
    return [*own, *_CLUSTER_OPTIONS] if issubclass(kind, warm) else own


def agent_class(name: str) -> type[Agent]:
    """Return the class of the agent called `name`.

    Raises:
        UserError: no agent has that name.
    """
    if name not in AGENTS:
        raise unknown("agent", name, AGENTS)
    module, _, cls = AGENTS[name].partition(":")
    found: type[Agent] = getattr(importlib.import_module(module), cls)
    return found
