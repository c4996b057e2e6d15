"""The tables that stand beside Optuna's in the database of a study, and one of Optuna's."""

from __future__ import annotations

from sqlalchemy import Column, Index, Integer, LargeBinary, MetaData, String, Table, Text, column, table

LONG = 255
"""Characters of a name: what every database can index."""

metadata = MetaData()

claims = Table(
    "autoprune_claims",
    metadata,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("worker", String(LONG), nullable=False),
    Column("token", String(32), nullable=False),
    Column("beat", Integer, nullable=False),
    Column("done", Integer, nullable=False),
    Column("candidate", Text),
    Column("digest", String(64)),
    Index("autoprune_claims_open", "study_id", "done"),
    Index("autoprune_claims_digest", "study_id", "digest", unique=True),
)
"""Who evaluates which trial. A row for each number that was ever begun; it stays when the trial is stored."""

devices = Table(
    "autoprune_devices",
    metadata,
    Column("name", String(LONG), primary_key=True),
    Column("worker", String(LONG), nullable=False),
    Column("token", String(32), nullable=False),
    Column("beat", Integer, nullable=False),
)
"""Who measures on which device."""

files = Table(
    "autoprune_files",
    metadata,
    Column("study_id", Integer, primary_key=True, autoincrement=False),
    Column("name", String(LONG), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("content", LargeBinary(2**32 - 1), nullable=False),
)
"""What workers elsewhere need of the run folder: its configuration and profile."""

attributes = table("study_system_attributes", column("study_id"), column("key"), column("value_json"))
"""Optuna's own (read in Optuna 5.0): what tools say of a study, by key, in JSON."""
