"""Alembic's entry: migrates over the connection that :class:`storage.database.Database` passes."""

from alembic import context

from storage.database import VERSION_TABLE
from storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    include_name=lambda name, kind, parents: kind != "table" or name in metadata.tables,
    render_as_batch=True,
)
context.run_migrations()
