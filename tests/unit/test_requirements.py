"""Every rule of the protocols has a test that exists."""

import ast
import functools
from pathlib import Path
from typing import Any

import pytest
import yaml

TESTS = Path(__file__).resolve().parents[1]
TABLES = {
    name: (TESTS / f"{name}_requirements.yaml").read_text(encoding="utf-8")
    for name in ("kserve", "transport")
}
RULES: dict[str, dict[str, dict[str, Any]]] = {
    name: yaml.safe_load(text) for name, text in TABLES.items()
}
EACH = [(name, rule) for name, rules in RULES.items() for rule in rules]


@functools.cache
def names_in(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, kinds))


def exists(test: str) -> bool:
    file, _, name = test.partition("::")
    path = TESTS / file
    return name.startswith("test_") and path.is_file() and name in names_in(path)


@pytest.mark.parametrize(("table", "rule"), EACH)
def test_a_rule_says_what_it_asks_who_says_so_and_which_tests_show_it(
    table: str, rule: str
) -> None:
    row = RULES[table][rule]
    assert row.keys() == {"rule", "source", "tests"}
    assert len(row["rule"]) > 10
    assert row["source"]
    assert row["tests"], f"{rule} has no test"
    assert [test for test in row["tests"] if not exists(test)] == []


@pytest.mark.parametrize("table", TABLES)
def test_no_rule_stands_twice(table: str) -> None:
    tree = yaml.compose(TABLES[table])
    assert isinstance(tree, yaml.MappingNode)
    names = [key.value for key, _ in tree.value]
    assert len(names) == len(set(names)) == len(RULES[table])


@pytest.mark.parametrize(
    ("table", "chapter"),
    [
        *(("kserve", f"K1.{number}") for number in range(1, 8)),
        *(("transport", f"T{number}") for number in (3, 4, 5, 6, 8, 10)),
        ("transport", "G"),
    ],
)
def test_every_chapter_has_rules(table: str, chapter: str) -> None:
    assert any(rule.startswith((f"{chapter}-", f"{chapter}.")) for rule in RULES[table])
