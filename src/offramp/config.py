"""The base of settings that users write: frozen, without unknown names, and with our own errors."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from offramp.errors import ConfigError

__all__ = ["Config"]


class Config(BaseModel):
    """A frozen pydantic model whose validation errors are a `ConfigError` that names the field."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            name = type(self).__name__ + (f".{where}" if where else "")
            raise ConfigError(f"{name}: {first['msg']}, not {first['input']!r}") from error
