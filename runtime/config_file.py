"""Reads the YAML file of a configuration: keys of one value or a list of them, nothing nested."""

from collections.abc import Sequence
from pathlib import Path

import configargparse
import yaml

from runtime.config_option import nearest
from runtime.errors import InvalidConfig

_NULL = "tag:yaml.org,2002:null"


class ConfigFile(configargparse.ConfigFileParser):  # type: ignore[misc]
    """Gives every value as it is written, so that the option alone decides what it means.

    YAML would make 1.1 of the name 1.10, true of the name `on`, and 630 of the address 10:30.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self.path = Path()
        self._keys = keys

    def parse(self, stream: Path) -> dict[str, str | list[str]]:
        """Return the keys that are set, null meaning none. Raises InvalidConfig."""
        self.path = stream
        root = _compose(stream)
        if root is None:
            return {}
        if not isinstance(root, yaml.MappingNode):
            raise _wrong(stream, root, "keys and values expected")
        found: dict[str, str | list[str]] = {}
        lines: dict[str, int] = {}
        for key_node, node in root.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise _wrong(stream, key_node, "a key must be a word")
            key = key_node.value
            name = key.replace("_", "-")
            if name in lines:
                raise _wrong(stream, key_node, f"key '{key}' is already in line {lines[name]}")
            lines[name] = key_node.start_mark.line + 1
            if name not in self._keys:
                near = nearest(name, self._keys)
                hint = f"; did you mean '{near}'?" if near else ""
                raise InvalidConfig(f"unknown key '{key}' in {stream}{hint}", param="config")
            if node.tag != _NULL:
                found[key] = _value(stream, key, node)
        return found


def _compose(path: Path) -> yaml.Node | None:
    try:
        return yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except OSError as error:
        raise InvalidConfig(
            f"cannot read the configuration {path}: {error.strerror}", param="config"
        ) from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"{path} is not UTF-8 text", param="config") from None
    except yaml.MarkedYAMLError as error:
        # Not its whole text: that quotes the file, which may hold a secret.
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        problem = ", ".join(filter(None, (error.context, error.problem)))
        raise InvalidConfig(f"{path}{line}: this is not YAML: {problem}", param="config") from None
    except (yaml.YAMLError, RecursionError):
        raise InvalidConfig(f"{path} is not YAML", param="config") from None


def _value(path: Path, key: str, node: yaml.Node) -> str | list[str]:
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if not isinstance(node, yaml.SequenceNode):
        raise _wrong(path, node, f"key '{key}' holds keys of its own, which no option does")
    if not all(isinstance(one, yaml.ScalarNode) and one.tag != _NULL for one in node.value):
        raise _wrong(path, node, f"key '{key}' must be a plain list")
    return [one.value for one in node.value]


def _wrong(path: Path, node: yaml.Node, problem: str) -> InvalidConfig:
    return InvalidConfig(f"{path}, line {node.start_mark.line + 1}: {problem}", param="config")
