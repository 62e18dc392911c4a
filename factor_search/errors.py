"""Everything that can go wrong for a reason a user can act on.

    FactorSearchError
    ├── SpecError                 the request itself
    ├── ModelError
    │   ├── ModelLoadError        the checkpoint cannot be read
    │   └── UnsupportedModelError it can, but RoPE factors cannot be put into it
    ├── DataError                 documents missing, unreadable, too short or too few
    ├── FactorsError              a factors file or vector
    ├── SearchFailedError         no candidate could be evaluated
    ├── FinetuneError             fine-tuning cannot go on
    │   ├── LossNotFiniteError    a loss or its gradient is NaN or infinite
    │   └── CheckpointError       a training checkpoint is broken, or belongs to another fine-tuning
    ├── ExportError               factors that an engine's format cannot express
    └── OutputError               a result that cannot be written

Each message is one line, names what was found, and says what to do next.
"""


class FactorSearchError(Exception):
    """Base of all errors with a one-line message for the user."""


class SpecError(FactorSearchError):
    """The job specification is malformed or asks for something impossible."""


class ModelError(FactorSearchError):
    """Something about the model."""


class ModelLoadError(ModelError):
    """The checkpoint or its configuration cannot be loaded."""


class UnsupportedModelError(ModelError):
    """The model loads, but rescale factors cannot act on it."""


class DataError(FactorSearchError):
    """Documents are missing, unreadable, too short or too few."""


class FactorsError(FactorSearchError):
    """Rescale factors that are malformed or belong to another model."""


class SearchFailedError(FactorSearchError):
    """Not one candidate could be evaluated."""


class FinetuneError(FactorSearchError):
    """Fine-tuning cannot go on."""


class LossNotFiniteError(FinetuneError):
    """A loss or its gradient is NaN or infinite; the message says at which step."""


class CheckpointError(FinetuneError):
    """A training checkpoint cannot be read, or was written for another specification, model, data or factors."""


class ExportError(FactorSearchError):
    """Factors cannot be expressed in the requested format."""


class OutputError(FactorSearchError):
    """Results cannot be written where asked."""


def one_line(error: BaseException) -> str:
    """An exception's message on one line and not too long, for embedding in our own; fit for any file or database."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.encode("utf-8", "replace").decode().replace("\0", "?")
    return text if len(text) <= 300 else f"{text[:297]}..."
