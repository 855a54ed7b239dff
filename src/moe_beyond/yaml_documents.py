"""YAML read strictly, as `documents` reads JSON and CSV; apart, since a predictor runs without PyYAML."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml

from moe_beyond.documents import repeated
from moe_beyond.errors import InputError, reason_of
from moe_beyond.limits import limits


class _Strict(yaml.SafeLoader):
    """Refuses a key that is given twice, references, and depth: a few of each can stand for any number of values."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="a reference to another place (*); write the value out")
        self._depth += 1
        if self._depth > limits().depth:
            raise yaml.MarkedYAMLError(problem=f"more than {limits().depth} values within one another")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # type: ignore[no-untyped-call, unused-ignore]
        twice = repeated(key for key in keys if isinstance(key, Hashable))
        if twice is not None:
            line = node.start_mark.line + 1
            raise yaml.MarkedYAMLError(problem=f"key {twice!r:.60} is given twice in what begins at line {line}")
        return super().construct_mapping(node, deep)


def load_yaml(data: bytes | str, where: str) -> Any:
    """A YAML document.

    Raises:
        InputError: It is none, larger or deeper than `Limits` allows, gives a key twice, or refers to another place.
    """
    if len(data) > limits().settings_bytes:
        raise InputError(f"{where}: {len(data):,} bytes, more than {limits().settings_bytes >> 10} KiB of settings")
    try:
        return yaml.load(data if isinstance(data, str) else data.decode("utf-8-sig"), _Strict)  # noqa: S506 - a safe one
    # also what Python says of a date, a number or a text that is none
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        raise InputError(f"{where}: not valid YAML ({reason_of(error)})") from error
