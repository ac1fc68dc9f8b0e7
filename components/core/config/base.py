"""What all configs are made of: frozen, typed, and an unknown name is an error that names the nearest one."""

import difflib
import json
from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError

from qlora_pipelines.components.core.errors import InputError

NOT_IN_KEY: dict[str, JsonValue] = {"in_key": False}
"""Marks an option that changes how a step works but not its result: it is part of no key."""


def not_in_key(default: Any, **options: Any) -> Any:
    """Pydantic's Field, marked NOT_IN_KEY."""
    return Field(default, json_schema_extra=NOT_IN_KEY, **options)


def _whole(value: object) -> object:
    # Numbers in a KFP struct arrive as floats.
    return int(value) if isinstance(value, float) and value.is_integer() else value


Int = Annotated[int, BeforeValidator(_whole)]


class StepConfig(BaseModel):
    """Base of all configs."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    renamed: ClassVar[dict[str, str]] = {}
    """Options of version 0.1 that have another name now. The old name is refused, and the error gives the new one."""

    @classmethod
    def parse(cls, options: str | dict[str, Any] = "{}", /, **values: Any) -> Self:
        """Builds the config from typed values and from the JSON object of all other options.

        Args:
            options: a JSON object (or dict) of this config's fields.
            **values: fields given one by one; the same field in `options` is an error.

        Raises:
            InputError: one line that names every option that is wrong, and how.
        """
        options = json_object(options)
        if not isinstance(options, dict):
            raise InputError(f"options must be a JSON object, got {type(options).__name__}")
        for name in options:
            if name in values:
                raise InputError(f"{name} is given twice: as a parameter and in options; keep the parameter")
        try:
            return cls(**values, **options)
        except ValidationError as error:
            raise InputError("; ".join(cls._explain(found) for found in error.errors())) from None

    @classmethod
    def _explain(cls, found: Any) -> str:
        where = ".".join(str(part) for part in found["loc"])
        if found["type"] == "extra_forbidden":
            return unknown(where, cls.model_fields, cls.renamed)
        if found["type"] == "missing":
            return f"{where} is required"
        message = found["msg"].removeprefix("Value error, ")
        return f"{where}: {message} (got {found['input']!r})" if where else message

    def key_fields(self) -> dict[str, Any]:
        """The options that decide the result; the keys are made from them."""
        return {
            name: getattr(self, name)
            for name, field in type(self).model_fields.items()
            if field.json_schema_extra != NOT_IN_KEY
        }


def json_object(value: Any) -> Any:
    """The content of JSON text; anything but text as it is.

    Raises:
        InputError: the text is not JSON.
    """
    try:
        return json.loads(value or "{}") if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise InputError(f"options is not JSON: {error}") from None


def json_text(value: Any) -> str:
    """JSON for a parameter of a run, without anything that would be replaced on the way to a step.

    Argo evaluates `{{...}}` in a pod's arguments, also below Kubeflow, and Kubernetes replaces `$(VARIABLE)`. In JSON
    these are in strings only, where a character can be written by its code.
    """
    text = json.dumps(value, sort_keys=True)
    return text.replace("{{", "{\\u007b").replace("$(", "\\u0024(")


def unknown(name: str, known: Iterable[str], renamed: dict[str, str]) -> str:
    """What to say about an option that does not exist: its new name, or else the nearest one."""
    return f"{name} is now {renamed[name]}" if name in renamed else f"unknown option {name}{nearest(name, known)}"


def nearest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"`, or all names there are where none is near."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(names)}"
