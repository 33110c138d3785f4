"""The one base of every model in `spec`: immutable, closed to unknown fields, cheap to compare."""

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """An immutable value. Unknown fields are refused, so that a typing error is never silent."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)
