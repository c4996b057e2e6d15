from __future__ import annotations

from tests.contracts.agent_contract import AgentContract


class TestAutoAgent(AgentContract):
    name = "auto"
