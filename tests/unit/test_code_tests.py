import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrostat.actors.verifiers.code_tests import (
    Asserted,
    Called,
    Written,
    read_tests,
    same_return,
    same_text,
    same_value,
)

TOLERANCE = 1e-6


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("1\n2\n", "1\n2", True),
        ("1 \n2\t\r\n\n\n", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        (" 1", "1", True),  # blanks between words and before them are told apart by words alone
        ("1  2", "1 2", True),
        ("12", "1 2", False),
        ("yes", "YES", False),
        ("0.3333333", "0.33333333333", True),
        ("0.34", "0.33", False),
        ("1e-7", "0.0", True),
        ("10000000", "10000001", False),
        ("10000000.0", "10000000.00001", True),
        ("nan", "0.5", False),
        ("", "", True),
        ("", "0", False),
        ("9" * 500, "1.5", False),
    ],
)
def test_output_is_compared_line_by_line(found: str, expected: str, same: bool) -> None:
    assert same_text(found, expected, TOLERANCE) is same


@given(st.text(alphabet="01.e- \n", max_size=30))
def test_every_output_equals_itself(text: str) -> None:
    assert same_text(text, text, 0.0)


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ([1, 2], [1, 2], True),
        ([1, 2], [2, 1], False),
        ([1.0000000001], [1], True),
        (1.1, 1, False),
        ({"a": [0.5]}, {"a": [0.5000000001]}, True),
        ({"a": 1}, {"b": 1}, False),
        ("1", 1, False),
        (None, 0, False),
        (10**400, 0.5, False),
        ([], None, False),
    ],
)
def test_values_are_compared_as_json(found: object, expected: object, same: bool) -> None:
    assert same_value(found, expected, TOLERANCE) is same


def test_what_is_returned_may_be_wrapped_once() -> None:
    assert same_return(7, [7], TOLERANCE)
    assert same_return([7], [7], TOLERANCE)
    assert not same_return(7, [7, 7], TOLERANCE)


def test_each_form_of_tests_is_read() -> None:
    def read(tests: object) -> object:
        return read_tests(json.dumps(tests))

    assert read({"inputs": ["1"], "outputs": ["2"]}) == Written(inputs=("1",), outputs=("2",))
    assert read({"inputs": [["1", "2"]], "outputs": [["3"]]}) == Written(inputs=("1\n2",), outputs=("3",))
    called = Called(function="f", inputs=([1, [2]],), outputs=(3,))
    assert read({"inputs": [[1, [2]]], "outputs": [3], "fn_name": "f"}) == called
    assert read({"inputs": ["1\n[2]"], "outputs": ["3"], "fn_name": "f"}) == called
    assert read({"inputs": ["1"], "outputs": ["2"], "fn_name": None}) == Written(inputs=("1",), outputs=("2",))
    assert read(["assert f()"]) == Asserted(tests=("assert f()",))
    assert read("assert f()") == Asserted(tests=("assert f()",))
    assert read({"test_list": ["assert f()"], "test_setup_code": ""}) == Asserted(tests=("assert f()",))
    assert read({"test": "def check(c): ...", "entry_point": "f"}) == Asserted(
        tests=("def check(c): ...",), entry_point="f"
    )
