from __future__ import annotations

import pydantic
import pytest

from morfi.errors import reason_of


class Wide(pydantic.BaseModel):
    width: int

    @pydantic.field_validator("width")
    @classmethod
    def check(cls, width: int) -> int:
        raise ValueError(f"width {width} is more than 3; give less")


def test_the_reason_of_a_validation_error_is_what_it_says_within() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        Wide(width=5)
    assert str(caught.value).startswith("1 validation error for Wide")
    assert reason_of(caught.value) == "width: width 5 is more than 3; give less"
    with pytest.raises(pydantic.ValidationError) as caught:
        Wide.model_validate({"width": "wide"})
    assert reason_of(caught.value).startswith("width: Input should be a valid integer")


def test_the_reason_of_a_validation_error_without_a_field() -> None:
    text = "1 validation error for VllmConfig\n  Value error, no fp8 here [type=value_error]\n    For further"
    assert reason_of(ValueError(text)) == "no fp8 here"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("\n  one thing\nand more"), "one thing"),
        (ValueError(), "ValueError"),
        (RuntimeError("  \n"), "RuntimeError"),
    ],
)
def test_the_reason_is_the_first_line_or_the_type(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason
