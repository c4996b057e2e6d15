"""Where a study is kept: an Optuna study in a database, and beside it who works on which trial."""

from autoprune.storage.address import Address
from autoprune.storage.claims import Claim, LostClaim, Turn
from autoprune.storage.database import Database

__all__ = ["Address", "Claim", "Database", "LostClaim", "Turn"]
