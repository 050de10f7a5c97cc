"""Every rule of the protocol has a test that exists."""

import ast
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
TABLE = (TESTS / "kserve_requirements.yaml").read_text(encoding="utf-8")
RULES: dict[str, dict[str, Any]] = yaml.safe_load(TABLE)


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    path = TESTS / file
    return name.startswith("test_") and path.is_file() and name in names_in(path)


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_says_what_it_asks_who_says_so_and_which_tests_show_it(rule: str) -> None:
    row = RULES[rule]
    assert row.keys() == {"rule", "source", "tests"}
    assert len(row["rule"]) > 10
    assert row["source"]
    assert row["tests"], f"{rule} has no test"
    assert [test for test in row["tests"] if not exists(test)] == []


def test_no_rule_stands_twice() -> None:
    tree = yaml.compose(TABLE)
    assert isinstance(tree, yaml.MappingNode)
    names = [key.value for key, _ in tree.value]
    assert len(names) == len(set(names)) == len(RULES)


@pytest.mark.parametrize("chapter", ["K1.1", "K1.2", "K1.3", "K1.4", "K1.5", "K1.6", "K1.7"])
def test_every_chapter_of_the_protocol_has_rules(chapter: str) -> None:
    assert any(rule.startswith(f"{chapter}-") for rule in RULES)
