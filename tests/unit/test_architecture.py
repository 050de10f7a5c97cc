"""What the project promises about its own text: budgets, layers, generated files, portability."""

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "wire",
    "runtime",
    "transport",
    "router",
    "server",
    "worker",
    "gateway_http",
    "cli",
)
MAX_FILE_LINES = 400
MAX_STATEMENTS = 40
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base", "manager"}
# Split so that this file does not hold what it looks for.
MACHINE_PATHS = re.compile(r"(?<![\w.])/(?:" + r"work|root|home/\w+)/")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def tracked(suffix: str = "") -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    paths = {ROOT / name for name in listed.stdout.split("\0") if name.endswith(suffix)}
    return sorted(path for path in paths if path.is_file())


def source_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, FUNCTIONS):
            yield node


def is_declaration(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether the body is `...`: a Protocol's method."""
    last = function.body[-1]
    return isinstance(last, ast.Expr) and getattr(last.value, "value", None) is ...


def imported(path: Path) -> set[str]:
    """Top-level names of all that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def importers(*modules: str) -> set[str]:
    return {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in source_of(package)
        if imported(path) & set(modules)
    }


def test_no_python_file_is_too_long() -> None:
    lines = {
        path.relative_to(ROOT): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked(".py")
    }
    totals: Counter[str] = Counter()
    for path, count in lines.items():
        totals[path.parts[0]] += count
    for package, total in totals.most_common():
        print(f"{package:16} {total:6} lines")
    assert {str(path): n for path, n in lines.items() if n > MAX_FILE_LINES} == {}


def test_no_function_holds_too_many_statements() -> None:
    long = {}
    for path in tracked(".py"):
        for function in functions(path):
            inner = sum(isinstance(node, ast.stmt) for node in ast.walk(function)) - 1
            if inner > MAX_STATEMENTS:
                long[f"{path.relative_to(ROOT)}:{function.lineno} {function.name}"] = inner
    assert long == {}


def test_the_proto_folder_holds_no_python() -> None:
    assert list((ROOT / "proto").rglob("*.py")) == []


@pytest.mark.parametrize("package", ["router", "wire"])
def test_pure_packages_await_nothing(package: str) -> None:
    waiting = [
        f"{path.name}:{function.name}"
        for path in source_of(package)
        for function in functions(path)
        if isinstance(function, ast.AsyncFunctionDef) and not is_declaration(function)
    ]
    assert waiting == []


def test_files_are_named_after_what_they_hold() -> None:
    vague = [path for path in tracked(".py") if path.stem.lstrip("_") in FORBIDDEN_NAMES]
    assert vague == []


def test_only_the_transport_modules_import_grpc() -> None:
    found = importers("grpc", "grpc_health", "grpc_reflection")
    assert {name for name in found if not name.startswith("runtime/grpc_")} == set()


def test_only_the_vllm_modules_import_vllm_and_torch() -> None:
    found = importers("vllm", "torch", "transformers")
    assert {name for name in found if not name.startswith("worker/vllm_")} == set()


def test_only_the_configuration_touches_the_environment() -> None:
    reading = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in source_of(package)
        if re.search(r"\bos\.(environ|getenv)\b", path.read_text(encoding="utf-8"))
    }
    # vLLM and gRPC take some settings from the environment alone: they are written there.
    assert reading <= {"runtime/config.py", "runtime/logs.py", "worker/vllm_start.py"}


def test_every_library_that_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    declared = {normal(re.split(r"[\[<>=~! ]", line)[0]) for group in groups for line in group}
    providers = packages_distributions()
    undeclared = {
        name
        for package in PACKAGES
        for path in source_of(package)
        for name in imported(path) - set(PACKAGES) - sys.stdlib_module_names
        if not declared & {normal(provider) for provider in providers.get(name, [])}
    }
    assert undeclared == set()


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_imports_follow_the_layers() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    ended = subprocess.run(
        [linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_no_file_names_a_place_on_somebodys_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            if MACHINE_PATHS.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


@pytest.mark.parametrize(
    ("folder", "name", "sources"),
    [
        ("wire", "wire.binpb", ["inference.proto", "penstock.proto"]),
        ("runtime", "etcd.binpb", ["etcd.proto"]),
    ],
)
def test_compiled_protocol_files_match_their_source(
    folder: str, name: str, sources: list[str], tmp_path: Path
) -> None:
    status = protoc.main(
        [
            "protoc",
            f"-I{ROOT / 'proto'}",
            "--include_imports",
            f"--descriptor_set_out={tmp_path / name}",
            f"--pyi_out={tmp_path}",
            *sources,
        ]
    )
    assert status == 0
    for made in tmp_path.iterdir():
        assert made.read_bytes() == (ROOT / folder / made.name).read_bytes(), made.name


def test_a_front_door_process_loads_neither_an_engine_nor_torch() -> None:
    code = (
        "import sys, cli.frontend, server.front_door, gateway_http.app, runtime.grpc_server;"
        "print(sorted({'vllm', 'torch', 'transformers', 'worker'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "[]\n"
