"""Where Optuna's tables are; apart from what opens them, since that loads Optuna."""

from pathlib import Path

from sqlalchemy.engine import make_url


def optuna_url_beside(database_url: str) -> str:
    """Where Optuna's tables are unless somebody says otherwise: the same PostgreSQL, or an SQLite file beside ours.

    Optuna commits often, and an SQLite file has one writer at a time: recording must not wait for the projection.
    """
    url = make_url(database_url)
    if url.get_backend_name() != "sqlite" or not url.database:
        return database_url
    file = Path(url.database)
    return url.set(database=str(file.with_name(f"{file.stem}.dashboard{file.suffix}"))).render_as_string(
        hide_password=False
    )
