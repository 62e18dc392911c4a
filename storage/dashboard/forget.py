"""Removes the studies of deleted jobs from Optuna's tables, without loading Optuna."""

import json
from collections.abc import Collection
from typing import Any

from sqlalchemy import MetaData, delete, inspect, select

from storage.database import Database

MARKS = ("job", "target_length")
"""The user attributes that the projection gives every study; one without them is somebody else's."""


def forget_studies(optuna_url: str, deleted: Collection[str]) -> int:
    """Delete the studies of deleted jobs, and no others: a laboratory's own, or another service's, may be beside them.

    Args:
        optuna_url: where Optuna's tables are.
        deleted: ids of the jobs.

    Returns:
        How many were deleted.

    Raises:
        DatabaseError: the tables cannot be reached.
    """
    if not deleted:
        return 0
    with Database(optuna_url, migrate=False) as database:
        with database.reading() as connection:
            if not {"studies", "study_user_attributes"} <= set(inspect(connection).get_table_names()):
                return 0
            tables = MetaData()
            tables.reflect(connection, only=lambda name, _: name == "trials" or name.startswith(("stud", "trial_")))
            attributes = tables.tables["study_user_attributes"]
            marks: dict[int, dict[str, Any]] = {}
            for study_id, key, value in connection.execute(
                select(attributes.c.study_id, attributes.c.key, attributes.c.value_json).where(
                    attributes.c.key.in_(MARKS)
                )
            ):
                marks.setdefault(study_id, {})[key] = json.loads(value)
        ours = [study_id for study_id, mark in marks.items() if len(mark) == len(MARKS) and str(mark["job"]) in deleted]
        for study_id in ours:
            trials = select(tables.tables["trials"].c.trial_id).where(tables.tables["trials"].c.study_id == study_id)
            with database.writing() as connection:
                for table in reversed(tables.sorted_tables):
                    if "trial_id" in table.c and table.name != "trials":
                        connection.execute(delete(table).where(table.c.trial_id.in_(trials)))
                    elif "study_id" in table.c:
                        connection.execute(delete(table).where(table.c.study_id == study_id))
    return len(ours)
