"""The exception tree: every error that a user's input can cause, under one root.

Programming errors stay ``TypeError`` and friends; what a user can mend derives from `SMAError`, so
that a command line catches one class, prints one message and exits with code 2.
"""


class SMAError(Exception):
    """Root of every error that bad input can cause."""


class ConfigError(SMAError, ValueError):
    """A configuration value is missing, unknown or out of range; the message names the field."""


class ShapeError(SMAError, ValueError):
    """An input's shape, dtype or device does not fit the model; the message names the argument."""


class DatasetError(SMAError, ValueError):
    """A prepared data set is absent, incomplete, damaged or of another version."""


class CheckpointError(SMAError, ValueError):
    """A checkpoint is absent, incomplete, damaged or of another version."""


class StreamingError(SMAError, RuntimeError):
    """A model that sees the future was asked to run one step at a time."""


class TrainingError(SMAError, RuntimeError):
    """Training cannot go on: the folder is taken, or another process of the run failed."""


class DivergenceError(TrainingError):
    """Training left the range of numbers: a gradient or a loss is not finite."""


class FleetError(SMAError, ValueError):
    """An entity is unknown or there already, or a saved fleet is damaged or another model's."""


class ExportError(SMAError, RuntimeError):
    """A model cannot be exported, a tool for it is missing, or what was written differs."""
