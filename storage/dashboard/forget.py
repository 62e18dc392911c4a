"""Removes the studies of deleted jobs from Optuna's tables, without loading Optuna."""

import json
from collections.abc import Callable, Sequence

from sqlalchemy import MetaData, delete, inspect, select

from storage.database import Database


def forget_studies(optuna_url: str, gone: Callable[[Sequence[str]], set[str]]) -> int:
    """Delete the studies whose jobs do not exist any more.

    Args:
        optuna_url: where Optuna's tables are.
        gone: returns those of some job ids that no job has.

    Returns:
        How many were deleted.

    Raises:
        DatabaseError: the tables cannot be reached.
    """
    with Database(optuna_url, migrate=False) as database:
        with database.reading() as connection:
            if not {"studies", "study_user_attributes"} <= set(inspect(connection).get_table_names()):
                return 0
            tables = MetaData()
            tables.reflect(connection, only=lambda name, _: name == "trials" or name.startswith(("stud", "trial_")))
            attributes = tables.tables["study_user_attributes"]
            query = select(attributes.c.study_id, attributes.c.value_json).where(attributes.c.key == "job")
            jobs = {study_id: str(json.loads(job)) for study_id, job in connection.execute(query)}
        deleted = gone(list(jobs.values()))
        for study_id in (study_id for study_id, job in jobs.items() if job in deleted):
            trials = select(tables.tables["trials"].c.trial_id).where(tables.tables["trials"].c.study_id == study_id)
            with database.writing() as connection:
                for table in reversed(tables.sorted_tables):
                    if "trial_id" in table.c and table.name != "trials":
                        connection.execute(delete(table).where(table.c.trial_id.in_(trials)))
                    elif "study_id" in table.c:
                        connection.execute(delete(table).where(table.c.study_id == study_id))
    return sum(job in deleted for job in jobs.values())
