"""What the fields of a specification name outside of it, described at each field.

A policy reads these descriptions and nothing else. So a field without one is refused, whatever it holds: a new field
cannot slip past. Numbers, and words out of a list that the field's type gives, name nothing; every text, flag or JSON
document is described by :class:`Names` in the field's type.
"""

import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from factor_search.errors import SpecError


class Names(Enum):
    """What the value of a field stands for."""

    NOTHING = "nothing outside of the specification"
    MODEL = "a model: a folder, a GGUF file or a name on the hub"
    REVISION = "a branch, tag or commit on the hub"
    KERNEL = "an attention implementation: of transformers, or code on the hub"
    CODE = "whether code of a model may be run"
    DOCUMENTS = "paths and globs of documents"
    FILES = "paths of other files"
    DATA_SET = "a data set on the hub"
    TASKS = "registered tasks of lm-evaluation-harness, which read data sets of the hub"
    TRACKERS = "trackers of experiments that are sent the progress"
    WEBHOOK = "an address that is sent a request"


Text = Annotated[str, Names.NOTHING]
Flag = Annotated[bool, Names.NOTHING]
"""A text, or a truth value, that names nothing."""


@dataclass(frozen=True)
class Named:
    """The value of one field."""

    key: str
    """Where it is in the specification, as in ``data.files``."""
    kind: Names
    value: Any
    holder: BaseModel
    """What the field belongs to."""


def named_in(specification: BaseModel, prefix: str = "") -> Iterator[Named]:
    """Iterate over the values of all described fields, however deep, except None.

    Args:
        specification: a job, a plan, or work.
        prefix: of the keys, ends with a full stop.

    Raises:
        SpecError: a field is not described.
    """
    missing = undescribed(type(specification))
    if missing:
        raise SpecError(f"{prefix}{missing[0]} cannot be checked, since nothing says what it names: leave it out")
    for name, field in type(specification).model_fields.items():
        value, key = getattr(specification, name), f"{prefix}{name}"
        kind = _description(field.metadata)
        if kind is not None and value is not None:
            yield Named(key, kind, value, specification)
        for place, nested in _nested(value, key):
            yield from named_in(nested, f"{place}.")


@cache
def undescribed(model: type[BaseModel]) -> tuple[str, ...]:
    """The fields of a model, and of models within it, that nothing describes."""
    missing: list[str] = []
    for name, field in model.model_fields.items():
        if _description(field.metadata) is None and not _names_nothing(field.annotation):
            missing.append(name)
        for nested in _models_in(field.annotation):
            missing += [f"{name}.{inner}" for inner in undescribed(nested) if nested is not model]
    return tuple(missing)


def _description(metadata: typing.Iterable[Any]) -> Names | None:
    return next((item for item in metadata if isinstance(item, Names)), None)


def _nested(value: Any, key: str) -> Iterator[tuple[str, BaseModel]]:
    if isinstance(value, BaseModel):
        yield key, value
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from _nested(item, f"{key}[{number}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _nested(item, f"{key}.{name}")


def _names_nothing(annotation: Any) -> bool:
    """Whether no value of a type can name anything, other than through models within it."""
    if annotation in (int, float, None, type(None)) or _is_model(annotation) or get_origin(annotation) is Literal:
        return True
    if get_origin(annotation) is Annotated:
        inner, *metadata = get_args(annotation)
        return _description(metadata) is Names.NOTHING or _names_nothing(inner)
    if get_origin(annotation) in (list, tuple, types.UnionType, typing.Union):
        return all(_names_nothing(part) for part in get_args(annotation) if part is not ...)
    return False


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if _is_model(annotation):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
