"""YAML settings, read strictly: aliases, repeated keys and unknown keys are errors that name file and line.

PyYAML composes the nodes (they know their lines), pydantic checks the values, and this joins the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from knot_ssh.errors import BadInput
from knot_ssh.wire import complaint, shown

Model = TypeVar("Model", bound=BaseModel)

NESTING_LIMIT = 16
"""Levels; the deepest file of ours has four."""


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without aliases, so that a small file cannot unfold into a large one."""

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not used here",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read and check a file; raises BadInput as `file:line: what is wrong`."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not UTF-8'}") from None
    return parse_yaml(text, model, str(path))


def parse_yaml(text: str, model: type[Model], name: str) -> Model:
    """Check YAML text against a model; raises BadInput as `name:line: what is wrong`."""
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        values = {} if root is None else _plain(loader, root, NESTING_LIMIT)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadInput(f"{name}:{line}: {shown(str(error.problem or error.context))}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise BadInput(f"{name}:{line}: a character that YAML does not allow") from None
    except RecursionError:
        raise BadInput(f"{name}:1: too deeply nested") from None
    values = {} if values is None else values
    try:
        return model.model_validate(values)
    except ValidationError as error:
        line, first = min(((_line_of(root, found["loc"]), found) for found in error.errors()), key=lambda pair: pair[0])
        raise BadInput(f"{name}:{line}: {complaint(first['loc'], first['type'], first['msg'])}") from None


def _plain(loader: _Loader, node: Node, levels: int) -> Any:
    """The node's value as plain Python, refusing repeated keys and deep nesting."""
    if levels == 0:
        raise _marked("too deeply nested", node)
    if isinstance(node, SequenceNode):
        return [_plain(loader, child, levels - 1) for child in node.value]
    if not isinstance(node, MappingNode):
        return _scalar(loader, node)
    values: dict[str, Any] = {}
    for key, child in node.value:
        if not isinstance(key, ScalarNode):
            raise _marked("a key must be a plain word", key)
        if key.value in values:
            raise _marked(f"the key {shown(key.value)!r} stands here twice", key)
        values[key.value] = _plain(loader, child, levels - 1)
    return values


def _scalar(loader: _Loader, node: Node) -> Any:
    """The value of a plain word, number or date."""
    try:
        return loader.construct_object(node, deep=True)
    except (ValueError, OverflowError):
        raise _marked("that value is not one of its kind", node) from None


def _line_of(root: Node | None, place: tuple[str | int, ...]) -> int:
    """The line of the innermost node on the way to `place`; of its key where it has one."""
    node, line = root, root.start_mark.line + 1 if root else 1
    for step in place:
        if isinstance(node, MappingNode):
            found = next(((key, child) for key, child in node.value if key.value == step), None)
            if found is None:
                break
            line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line + 1
    return line


def _marked(problem: str, node: Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
