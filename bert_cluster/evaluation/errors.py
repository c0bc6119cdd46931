"""Errors of the evaluation commands beside those of the data (`rows.DataError`): what, expected, found, what to do."""

from bert_cluster.errors import BertClusterError


class EvaluationError(BertClusterError):
    """Any error that an evaluation command reports in one sentence instead of a traceback."""


class OptionError(EvaluationError, ValueError):
    """Flags that contradict each other, or a flag whose value is impossible."""


class CheckpointError(EvaluationError, ValueError):
    """A model folder, Hub repository or adapter that cannot be evaluated on this task."""


class StoredResultsError(EvaluationError, ValueError):
    """Results already in the output folder cannot be continued by this command."""


class LaunchError(EvaluationError, RuntimeError):
    """Several processes were asked for, and this one runs alone."""


class RunError(EvaluationError, RuntimeError):
    """A forward pass failed: out of memory, or the patched model did not run as it should."""


class MissingPackageError(EvaluationError, ImportError):
    """An optional package is needed for what was asked, and is not installed."""
