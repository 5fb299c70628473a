"""YAML settings, read strictly: aliases, repeated keys and unknown keys are errors that name file and line.

PyYAML composes the nodes (they know their lines), pydantic checks the values, and `Document` joins the two. A document
may be checked in parts, each with a model of its own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from knot_ssh.errors import BadInput
from knot_ssh.wire import complaint, shown

Model = TypeVar("Model", bound=BaseModel)
Place = tuple[str | int, ...]
"""The way to a value: keys and positions."""

NESTING_LIMIT = 16
"""Levels; the deepest file of ours has four."""


INT = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without aliases, so that a small file cannot unfold into a large one.

    Whole numbers are decimal: in YAML 1.1 `010` would be eight, and `22:30` 1350.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML wants it like this
        first: [(tag, pattern) for tag, pattern in resolvers if tag != INT]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Node | None, index: int) -> Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(
                problem="aliases are not used here",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(INT, re.compile(r"[-+]?(0|[1-9][0-9]*)\Z"), list("-+0123456789"))


@dataclass(frozen=True, slots=True)
class Document:
    """A YAML file, read but not checked yet: its values, and the nodes that know their lines."""

    name: str
    root: Node | None
    values: Any

    @classmethod
    def read(cls, path: Path) -> Document:
        """Read a file; raises BadInput as `file:line: what is wrong`."""
        try:
            return cls.decode(path.read_bytes(), str(path))
        except OSError as error:
            raise BadInput(f"cannot read {path}: {error.strerror}") from None

    @classmethod
    def decode(cls, content: bytes, name: str) -> Document:
        """Read a file's content; raises BadInput as `name:line: what is wrong`."""
        try:
            return cls.parse(content.decode(), name)
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            raise BadInput(f"{name}:{line}: it is not UTF-8") from None

    @classmethod
    def parse(cls, text: str, name: str) -> Document:
        """Read YAML text; raises BadInput as `name:line: what is wrong`."""
        if text.lstrip().startswith("{"):  # perhaps JSON, where a tab is a space, and stands in no string as such
            text = text.replace("\t", " ")
        try:
            loader = _Loader(text)
            root = loader.get_single_node()
            return cls(name, root, None if root is None else _plain(loader, root, NESTING_LIMIT))
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise BadInput(f"{name}:{line}: {shown(str(error.problem or error.context))}") from None
        except yaml.reader.ReaderError as error:
            line = text.count("\n", 0, error.position) + 1
            raise BadInput(f"{name}:{line}: a character that YAML does not allow") from None
        except (ValueError, ArithmeticError):  # PyYAML takes any number for a character's code, or for YAML's version
            raise BadInput(f"{name}:{loader.line + 1}: a number that is too large") from None
        except RecursionError:
            raise BadInput(f"{name}:1: too deeply nested") from None

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing at all."""
        return self.values is None

    def only(self, keys: Collection[str]) -> Document:
        """The part under these keys."""
        return self._part(lambda key: key in keys)

    def without(self, keys: Collection[str]) -> Document:
        """What is left without that part; a document that has no keys at all is left whole."""
        return self._part(lambda key: key not in keys) if isinstance(self.values, dict) else self

    def _part(self, wanted: Callable[[str], bool]) -> Document:
        values = self.values if isinstance(self.values, dict) else {}
        return replace(self, values={key: value for key, value in values.items() if wanted(key)})

    def check(self, model: type[Model]) -> Model:
        """The values as the model has them; raises BadInput as `name:line: what is wrong`, for the first that is."""
        try:
            return model.model_validate({} if self.is_empty else self.values)
        except ValidationError as error:
            first = min(error.errors(), key=self._rank)
            raise self.error(first["loc"], complaint(first["loc"], first["type"], first["msg"])) from None

    def _rank(self, error: ErrorDetails) -> tuple[int, bool]:
        """Which error comes first: by line, and what is missing last, which may only be misspelt."""
        return self.line(error["loc"]), error["type"] == "missing"

    def error(self, place: Place, problem: str) -> BadInput:
        """Says what is wrong there."""
        return BadInput(f"{self.name}:{self.line(place)}: {problem}")

    def line(self, place: Place) -> int:
        """The line of the innermost node on the way to `place`; of its key where it has one."""
        return _line_of(self.root, place)


def load_yaml(path: Path, model: type[Model]) -> Model:
    """Read and check a file; raises BadInput as `file:line: what is wrong`."""
    return Document.read(path).check(model)


def parse_yaml(text: str, model: type[Model], name: str) -> Model:
    """Check YAML text against a model; raises BadInput as `name:line: what is wrong`."""
    return Document.parse(text, name).check(model)


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
    except (ValueError, ArithmeticError, LookupError, AttributeError):  # what PyYAML meets behind an explicit tag
        raise _marked("that value is not one of its kind", node) from None


def _line_of(root: Node | None, place: Place) -> int:
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
