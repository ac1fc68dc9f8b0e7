"""What all configs are made of: frozen, typed, and an unknown name is an error that names the nearest one."""

import difflib
import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, JsonValue, ValidationError

from qlora_pipelines.components.core.errors import InputError

NOT_IN_KEY: dict[str, JsonValue] = {"in_key": False}
"""Marks an option that changes how a step works but not what comes out: it takes no part in any key."""


def _whole(value: object) -> object:
    # Numbers inside a KFP struct arrive as floats.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]


class StepConfig(BaseModel):
    """Base of all configs: frozen, and a name it does not know is an error that names the nearest one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def parse(cls, options: str | dict[str, Any] = "{}", /, **values: Any) -> Self:
        """Builds the config from typed values and from the JSON object of all other options.

        Args:
            options: a JSON object (or dict) of this config's fields.
            **values: fields given one by one; the same field in `options` is an error.

        Raises:
            InputError: one line that names every option that is wrong, and how.
        """
        if isinstance(options, str):
            try:
                options = json.loads(options or "{}")
            except json.JSONDecodeError as error:
                raise InputError(f"options is not JSON: {error}") from None
        if not isinstance(options, dict):
            raise InputError(f"options must be a JSON object, got {type(options).__name__}")
        for name in options:
            if name in values:
                raise InputError(f"{name} is given twice: as a parameter and in options; keep the parameter")
        try:
            return cls(**values, **options)
        except ValidationError as error:
            raise InputError(cls._explain(error)) from None

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        return "; ".join(cls._explain_one(found) for found in error.errors())

    @classmethod
    def _explain_one(cls, found: Any) -> str:
        where = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            return f"unknown option {where}{nearest(str(found['loc'][-1]), cls.model_fields)}"
        if found["type"] == "missing":
            return f"{where} is required"
        message = found["msg"].removeprefix("Value error, ")
        return f"{where}: {message} (got {found['input']!r})" if where else message

    def key_fields(self) -> dict[str, Any]:
        """The options that decide the result, for the keys by content."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra != NOT_IN_KEY
        }


def nearest(name: str, known: Any) -> str:
    """`"; did you mean X?"`, or what there is where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(known)}"
