"""What every section of a config is: frozen, strict about its keys, and explained by the texts under its fields."""

import typing
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError


class Section(BaseModel):
    """Frozen, unknown keys refused, and the docstring under a field is its description."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def refuse_unread(self, *names: str, because: str, remedy: str, section: str = "") -> None:
        """Raises ValueError for the first of the fields that differs from its default, though nothing reads it.

        A default may stand in the file: the resolved config of a run spells every one of them out. `section` names
        this one where another validates it."""
        for name in names:
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                place = f"{section}.{name}" if section else name
                raise ValueError(f"{place} = {value!r} is not read where {because}; drop it or {remedy}")

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        # Python counts True as 1, so `steps: yes` would pass for one step.
        annotation = cls.model_fields[str(info.field_name)].annotation
        kinds = {annotation, *typing.get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise PydanticCustomError("float_type", "must be a number")
        return value
