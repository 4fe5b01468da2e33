"""The exception tree of the pilot: what a user can mend, under one root."""


class PilotError(Exception):
    """Root of every error that a plan, a log or a run folder can cause."""


class PlanError(PilotError, ValueError):
    """A plan is absent, malformed or contradicts itself; the message names the field."""


class LogError(PilotError, ValueError):
    """A log cannot be read as the plan says; the message names file, column and row."""


class RunError(PilotError, RuntimeError):
    """A run folder is absent, incomplete, damaged or belongs to another plan."""


class DecisionError(PilotError, ValueError):
    """A decision cannot be signed as it was given; the message names the option."""


class TrackingError(PilotError, RuntimeError):
    """The MLflow store is absent, cannot be opened or cannot be served."""
