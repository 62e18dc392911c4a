"""What a request asked for, recognised when it is repeated, also after an upgrade that has added fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from factor_search.files.canonical_json import sha256_of


@dataclass(frozen=True)
class Asked:
    """A job or plan as it was asked for, before names on the hub became commits."""

    whole: Mapping[str, Any]
    """With every field."""
    given: Mapping[str, Any]
    """Without fields that have their defaults."""

    @classmethod
    def of(cls, spec: BaseModel) -> "Asked":
        """Of a specification."""
        return cls(spec.model_dump(mode="json"), spec.model_dump(mode="json", exclude_defaults=True))

    @property
    def sha256(self) -> str:
        """The hash that is stored with what is submitted."""
        return sha256_of(self.whole)

    def repeats(self, sha256: str, stored: Mapping[str, Any]) -> bool:
        """Whether this is what was asked for before.

        Args:
            sha256: the hash that was stored then.
            stored: the specification that was stored then, by this version or an earlier one.
        """
        return sha256 in (self.sha256, sha256_of(_as_then(self.whole, self.given, stored)))


def _as_then(whole: Any, given: Any, stored: Any) -> Any:
    """The value as it was before fields existed that the stored one lacks and that have their defaults here."""
    if isinstance(whole, Mapping) and isinstance(stored, Mapping):
        given = given if isinstance(given, Mapping) else {}
        known = {key: value for key, value in whole.items() if key in stored or key in given}
        return {key: _as_then(value, given.get(key), stored.get(key)) for key, value in known.items()}
    if isinstance(whole, list) and isinstance(stored, list) and len(whole) == len(stored):
        given = given if isinstance(given, list) else [None] * len(whole)
        return [_as_then(*values) for values in zip(whole, given, stored, strict=True)]
    return whole
