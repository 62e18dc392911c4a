"""What storage can refuse.

FactorSearchError
└── StorageError
    ├── DatabaseError     it cannot be reached, opened or migrated
    │   └── MissingDatabaseError  its file was deleted or replaced while it was open
    ├── NotFoundError     no such job or key
    ├── ConflictError     not possible in the job's present state, or a key used for two different requests
    └── LeaseLostError    another coordinator has the job now
"""

from factor_search.errors import FactorSearchError


class StorageError(FactorSearchError):
    """Base of all of them."""


class DatabaseError(StorageError):
    """The database cannot be reached, opened or migrated."""


class MissingDatabaseError(DatabaseError):
    """The file of an SQLite database was deleted or replaced while it was open."""


class NotFoundError(StorageError):
    """There is no such job or key."""


class ConflictError(StorageError):
    """The request does not fit the present state."""


class LeaseLostError(StorageError):
    """Another coordinator drives the job now, or somebody ended it: nothing may be written for it any more."""
