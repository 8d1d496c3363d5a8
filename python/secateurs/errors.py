"""Every exception the package raises on purpose: one sentence, with what was expected and what
came."""

from __future__ import annotations


class SecateursError(Exception):
    """Base of all errors raised by secateurs."""


class ArgumentError(SecateursError, TypeError, ValueError):
    """An argument is of another kind than a function takes, or in a state it cannot use."""


class PlanError(SecateursError, ValueError):
    """A sparsity plan is malformed, or does not fit the model it is used on."""


class FamilyError(SecateursError, ValueError):
    """The model is not of a supported family, or of a supported family in an unsupported form."""


class FormatError(SecateursError, ValueError):
    """A sparse weight is malformed, or a weight cannot be stored in the format asked for."""


class OperandError(SecateursError, ValueError):
    """An operation was given tensors that do not fit together."""


class BackendError(SecateursError, RuntimeError):
    """No backend can run an operation, or a forced backend refuses it."""


class BudgetError(SecateursError, ValueError):
    """A budget is empty, out of range, or cannot be met by the chosen method."""


class MethodError(SecateursError, ValueError):
    """A pruning method is unknown, misused, or produced unusable scores."""


class DataError(SecateursError, ValueError):
    """Calibration or input data is empty or malformed."""


class MeasurementError(SecateursError, RuntimeError):
    """A time could not be measured well enough to decide by."""


class CheckpointError(SecateursError, RuntimeError):
    """A saved plan or model cannot be read or written."""


class PatternError(SecateursError, ValueError):
    """A pattern is malformed, or cannot be laid over the shape asked for."""


class ConvertedError(SecateursError, RuntimeError):
    """A converted model was asked for what only the dense one can do."""
