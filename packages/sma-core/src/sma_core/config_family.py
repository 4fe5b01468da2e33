"""Families of configurations, told apart by a tag, and their way to plain values and back."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, get_args, get_origin

from sma_core.config_checks import Checked
from sma_core.errors import ConfigError


class Family(Checked):
    """A family of configurations: each direct subclass is a family, theirs are its members."""

    tag: ClassVar[str]
    members: ClassVar[dict[str, type]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if Family in cls.__bases__:
            cls.members = {}
            return
        name = cls.__dict__.get(cls.tag)
        if not isinstance(name, str):
            raise TypeError(f"{cls.__name__} must define the class attribute {cls.tag!r}")
        cls.members[name] = cls


def config_to_dict(config: Any) -> dict[str, Any]:
    """Plain form of a configuration, ready for JSON, with its tag first."""
    fields = dataclasses.fields(config)
    tagged = {config.tag: getattr(config, config.tag)} if isinstance(config, Family) else {}
    return tagged | {f.name: _plain(getattr(config, f.name)) for f in fields}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def from_plain(cls: Any, data: Any) -> Any:
    """Build a configuration of a class, or of the member of a family that its tag names.

    Raises
    ------
    ConfigError
        A tag or field is unknown, missing or out of range; the message names it by its path.
    """
    if not isinstance(data, Mapping):
        raise ConfigError(f"must be a table of fields, not {data!r}")
    fields = dict(data)
    if issubclass(cls, Family):
        tag = fields.pop(cls.tag, None)
        if not isinstance(tag, str) or tag not in cls.members:
            raise ConfigError(f"{cls.tag}: {tag!r} is not one of {', '.join(sorted(cls.members))}")
        cls = cls.members[tag]
    known = {f.name: f for f in dataclasses.fields(cls)}
    for name in fields:
        if name not in known:
            raise ConfigError(f"{name}: unknown field; the known ones are {', '.join(known)}")
    for name, f in known.items():
        required = f.default is f.default_factory is dataclasses.MISSING
        if required and name not in fields:
            raise ConfigError(f"{name}: missing")
    return cls(**{name: _decode_field(name, known[name].type, v) for name, v in fields.items()})


def _decode_field(name: str, hint: Any, value: Any) -> Any:
    nested = dataclasses.is_dataclass(hint) or _is_family(hint)
    if nested:
        return _at(name, hint, value)
    if get_origin(hint) is tuple and _is_family(get_args(hint)[0]):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{name}: must be a list, not {value!r}")
        return tuple(_at(f"{name}[{i}]", get_args(hint)[0], item) for i, item in enumerate(value))
    return value


def _is_family(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, Family)


def _at(path: str, cls: Any, value: Any) -> Any:
    """Decode a nested configuration; its errors speak of the field by its whole path."""
    try:
        return from_plain(cls, value)
    except ConfigError as error:
        text = str(error)
        joint = " " if text.startswith("must") else "."
        raise ConfigError(f"{path}{':' if joint == ' ' else ''}{joint}{text}") from None
