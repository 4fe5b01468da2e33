"""Checks of single configuration fields; each raises `ConfigError` naming the field."""

from typing import Any, get_args

from sma_core.errors import ConfigError


def check_integer(config: Any, name: str, minimum: int) -> None:
    """Check a whole number against its least value."""
    value = getattr(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise ConfigError(f"{name}: must be an integer of at least {minimum}, not {value!r}")


def check_number(config: Any, name: str, low: float, high: float, *, bounds: str = "[]") -> None:
    """Check a real number against an interval, its ends open or closed as in ``"[)"``.

    The field becomes a float.
    """
    value = getattr(config, name)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    above = real and (value >= low if bounds[0] == "[" else value > low)
    below = real and (value <= high if bounds[1] == "]" else value < high)
    if not (above and below):
        raise ConfigError(
            f"{name}: must be a number in {bounds[0]}{low:g}, {high:g}{bounds[1]}, not {value!r}"
        )
    object.__setattr__(config, name, float(value))


def check_shares(config: Any, name: str, count: int) -> None:
    """Check one share in (0, 1], or a list of `count` of them; it becomes a float or a tuple."""
    value = getattr(config, name)
    listed = isinstance(value, list | tuple)
    shares = tuple(value) if listed else (value,)
    for i, share in enumerate(shares):
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            field = f"{name}[{i}]" if listed else name
            raise ConfigError(f"{field}: must be a number in (0, 1], not {share!r}")
    if listed and len(shares) != count:
        raise ConfigError(
            f"{name}: needs one share or {count}, one a sub-module, got {len(shares)}"
        )
    floats = tuple(float(share) for share in shares)
    object.__setattr__(config, name, floats if listed else floats[0])


def check_choice(config: Any, name: str, literal: Any) -> None:
    """Check a word against the values of a ``Literal``."""
    value = getattr(config, name)
    if value not in get_args(literal):
        raise ConfigError(f"{name}: must be one of {', '.join(get_args(literal))}, not {value!r}")


def check_flag(config: Any, name: str) -> None:
    """Check that a field is a bool."""
    if not isinstance(getattr(config, name), bool):
        raise ConfigError(f"{name}: must be true or false, not {getattr(config, name)!r}")


def check_instance(config: Any, name: str, kind: type) -> None:
    """Check the class of a field."""
    value = getattr(config, name)
    if not isinstance(value, kind):
        raise ConfigError(f"{name}: must be a {kind.__name__}, not {value!r}")


class Checked:
    """Fields are checked in ``__post_init__`` with an error that names them.

    The mark keeps a run-time type checker from answering first with an error of its own.
    """

    __no_type_check__ = True
