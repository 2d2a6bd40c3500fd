"""YAML of settings: plain values, or one line that quotes nothing of the file."""

import pytest

from routerjax.yaml_text import read_yaml


def test_plain_values_are_read() -> None:
    assert read_yaml(b"a: {b: [1, 2.5, true, null, text]}\n") == {"a": {"b": [1, 2.5, True, None, "text"]}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: !!map [sk-1]", "tags .*line 1, column 4"),
        ("a: !!map sk-1", "tags"),
        ("a: !!bool sk-1", "tags"),
        ("a: !!int ''", "tags"),
        ("a: !!float ''", "tags"),
        ("a: !!timestamp sk-1", "tags"),
        ("a: !sk-1 b", "tags"),
        ("a: &sk-1 b\nc: *sk-1", "references .*line 2, column 4"),
        (f"a: {'1:' * 300}1.0", "a number or a date"),
        ("a: 2020-13-45", "a number or a date"),
        ("a: 0x_", "a number or a date"),
        (f"a: {'9' * 5000}", "a number or a date"),
        ("{sk-1: b}: c", "unhashable key, line 1, column 1"),
        ('key: "sk-1', "unexpected end of stream, line 1, column 11"),
        ("a: b: sk-1", "mapping values are not allowed here, line 1"),
        ("a:\n\tkey: sk-1", "line 2, column 1"),
        ("--- sk-1\n--- sk-1", "another document, line 2"),
        ("[" * 10_000, "nested too deeply"),
        ("a: \0sk-1", "special characters are not allowed"),
        ("a: 1\na: sk-1", "the key 'a' is there twice, line 1"),
    ],
)
def test_what_is_not_read_is_said_in_one_line_without_what_stands_there(content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        read_yaml(content.encode())
    assert "\n" not in str(raised.value)
    assert "sk-1" not in str(raised.value)
