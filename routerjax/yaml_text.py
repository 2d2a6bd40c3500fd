"""YAML files of settings, as plain values."""

from __future__ import annotations

from typing import Any

import yaml


def read_yaml(content: bytes) -> Any:
    """Read one document of YAML.

    Raises:
        ValueError: it is none, or has references, tags or a key twice. The message is one line that quotes no line of
            the document, which may hold a secret.
    """
    try:
        return yaml.load(content, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ValueError(f"{error.problem or 'it cannot be read'}{place}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (ValueError, OverflowError):  # 0x_, 2020-13-45
        raise ValueError("a number or a date in it is none: text that looks like one is written in quotes") from None


class _Loader(yaml.SafeLoader):
    """YAML without references, whose few lines can be billions of values, without tags, and without a key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _error("it has references (*name), which must be written out", event.start_mark)
        if isinstance(event, yaml.NodeEvent) and getattr(event, "tag", None) is not None:
            raise _error("it has tags (!name), which must be left out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise _error(f"the key {twice[0]!r:.80} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _error(problem: str, mark: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
