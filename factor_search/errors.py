"""All errors that a user can act on.

    FactorSearchError
    ├── SpecError                 the specification is not valid
    │   └── TooLargeError         it needs far more memory than there is
    ├── ModelError
    │   ├── ModelLoadError        the checkpoint cannot be read
    │   │   └── ModelChangedError its files, or what computes with it, are not those that the work began with
    │   └── UnsupportedModelError factors cannot be applied to the model
    ├── DataError                 documents are missing, unreadable, too short or too few
    ├── FactorsError              a factors file or vector is not valid
    ├── SearchFailedError         no candidate could be evaluated
    ├── FinetuneError             fine-tuning cannot continue
    │   ├── LossNotFiniteError    a loss or its gradient is NaN or infinite
    │   └── CheckpointError       a training checkpoint is broken, or belongs to another fine-tuning
    ├── TrackerError              a tracker of experiments is not installed, or cannot be used
    ├── ExportError               an engine's format cannot express the factors
    └── OutputError               a result cannot be written

Each message is one line, names what was found, and says what to do next.
"""

from factor_search.visible import masked


class FactorSearchError(Exception):
    """The base of all errors with a one-line message for the user."""


class SpecError(FactorSearchError):
    """The job specification is malformed or asks for something impossible."""


class TooLargeError(SpecError):
    """The work needs far more memory than there is; the message names the largest length that would fit."""


class ModelError(FactorSearchError):
    """The model cannot be used."""


class ModelLoadError(ModelError):
    """The checkpoint or its configuration cannot be loaded."""


class ModelChangedError(ModelLoadError):
    """The files of the model, the device or the libraries are not those that the work began with."""


class UnsupportedModelError(ModelError):
    """The model can be loaded, but rescale factors cannot be applied to it."""


class DataError(FactorSearchError):
    """Documents are missing, unreadable, too short or too few."""


class FactorsError(FactorSearchError):
    """Rescale factors are malformed or belong to another model."""


class SearchFailedError(FactorSearchError):
    """No candidate could be evaluated."""


class FinetuneError(FactorSearchError):
    """Fine-tuning cannot continue."""


class LossNotFiniteError(FinetuneError):
    """A loss or its gradient is NaN or infinite; the message says at which step."""


class CheckpointError(FinetuneError):
    """A training checkpoint cannot be read, or was written for another specification, model, data or factors."""


class TrackerError(FactorSearchError):
    """A tracker of experiments is not installed, or cannot be used here."""


class VerificationError(FactorSearchError):
    """An inference engine cannot load or run what was exported."""


class ExportError(FactorSearchError):
    """Factors cannot be expressed in the requested format."""


class OutputError(FactorSearchError):
    """Results cannot be written to the requested place."""


def one_line(error: BaseException) -> str:
    """Return an exception's message as one line of at most 300 characters, valid in any file or database.

    Passwords in it are masked, since it goes to events, logs and messages of jobs that others read.
    """
    text = masked(" ".join(str(error).split())) or type(error).__name__
    text = text.encode("utf-8", "replace").decode().replace("\0", "?")
    return text if len(text) <= 300 else f"{text[:297]}..."
