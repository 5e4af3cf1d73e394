"""Which model a name means, what is in it, and how it is loaded.

A name is a local folder or a hub name (`org/model` or `org/model@revision`). Weights are read from safetensors only:
pickle runs code when it is read. Importing this file is cheap; transformers comes in where a function needs it.
"""

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefdata.errors import UserError

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

DTYPES = ("float32", "bfloat16", "float16")

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_WEIGHT_FILES = ("*.safetensors", "*.safetensors.index.json")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# written into config.json by whoever saved the model; none of them changes what the model computes
_INERT_CONFIG_KEYS = {"_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache", "architectures"}


@dataclass(frozen=True)
class Source:
    """Where a model's files are: the folder to read, the name to record, the hub's commit (None: a local folder)."""

    folder: Path
    name: str
    commit: str | None = None


def resolve(name: str, *, weights: bool = True, remote_code: bool = False) -> Source:
    """The folder that a name means. A hub model is taken from the local hub cache, or downloaded into it."""
    folder = Path(name).expanduser()
    if folder.is_dir():
        return Source(folder, _recorded_name(folder))
    if folder.is_file():
        raise UserError(f"model {name} is a file: give the folder that holds config.json and the weights.")
    if not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"model {name}: there is no such folder. Give a folder with config.json, or a hub name (org/model)."
        )
    patterns = _CONFIG_FILES + (_WEIGHT_FILES if weights else ()) + (("*.py",) if remote_code else ())
    return _from_hub(name, patterns)


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
) -> "PreTrainedModel":
    """A causal language model in eval mode, every dropout 0, on `device` (default: CUDA if there is one, else CPU)."""
    from transformers import AutoModelForCausalLM

    _check_dtype(dtype)
    source = resolve(name, remote_code=trust_remote_code)
    weight_files(source)
    config = _config_in(source, name, trust_remote_code)
    _drop_nothing(config)
    if attn_implementation is None and getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        attn_implementation = "eager"  # the default, SDPA, leaves the soft-cap out without a word
    attention = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    with _in_words(name), _no_progress_bar():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            **attention,
        )
        model, found = loaded
        _check_complete(name, found)
        return model.to(device or _default_device()).eval()  # type: ignore[no-any-return]


def load_classifier(
    name: str,
    *,
    dtype: str = "float32",
    device: str | None = None,
    trust_remote_code: bool = False,
    without_head: bool = False,
) -> "PreTrainedModel":
    """A sequence classifier with one label, in eval mode, every dropout 0.

    without_head: the folder may be a language model's, which has no such head; what the head's weights are is then left
    to chance. Otherwise a folder without a head is refused.
    """
    from transformers import AutoModelForSequenceClassification

    _check_dtype(dtype)
    source = resolve(name, remote_code=trust_remote_code)
    weight_files(source)
    config = _config_in(source, name, trust_remote_code)
    _drop_nothing(config)
    if without_head:
        config.num_labels = 1
    elif config.num_labels != 1:
        raise UserError(
            f"model {name} has {config.num_labels} labels, and a reward model has one score: train one with"
            " python -m trainers.run --loss reward, or give another model."
        )
    with _in_words(name), _no_progress_bar():
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            config=config,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model, found = loaded
        if without_head:
            found["missing_keys"] = {key for key in found["missing_keys"] if not key.startswith("score.")}
        _check_complete(name, found)
    text = model.config.get_text_config()
    if text.pad_token_id is None:  # transformers refuses batches without one; which it is changes no score here
        text.pad_token_id = text.eos_token_id if isinstance(text.eos_token_id, int) else 0
    return model.to(device or _default_device()).eval()  # type: ignore[no-any-return]


def load_encoder(name: str, *, device: str | None = None, trust_remote_code: bool = False) -> "PreTrainedModel":
    """A model of any kind without its head, for its hidden states: float32, in eval mode, every dropout 0."""
    from transformers import AutoModel

    source = resolve(name, remote_code=trust_remote_code)
    weight_files(source)
    config = _config_in(source, name, trust_remote_code)
    _drop_nothing(config)
    with _in_words(name, "a model with hidden states"), _no_progress_bar():
        loaded: Any = AutoModel.from_pretrained(
            source.folder,
            config=config,
            dtype="float32",
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model, found = loaded
        # a pooler that the files may lack comes after the hidden states
        found["missing_keys"] = {key for key in found["missing_keys"] if not key.startswith("pooler.")}
        _check_complete(name, found)
    return model.to(device or _default_device()).eval()  # type: ignore[no-any-return]


def load_config(name: str, *, trust_remote_code: bool = False) -> "PretrainedConfig":
    """The model's configuration alone: no weights are read or downloaded."""
    return _config_in(resolve(name, weights=False, remote_code=trust_remote_code), name, trust_remote_code)


def max_positions(name: str, *, trust_remote_code: bool = False) -> int | None:
    """The longest sequence (prompt and answer) that the model takes, in tokens; None if it sets no limit."""
    return config_positions(load_config(name, trust_remote_code=trust_remote_code))


def config_positions(config: "PretrainedConfig") -> int | None:
    """`max_positions` of a configuration already loaded."""
    text = config.get_text_config()
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        if isinstance(limit := getattr(text, field, None), int) and limit > 0:
            return limit
    return None


def model_digest(name: str) -> str:
    """sha256 over the sorted (file name, sha256) of the weight files."""
    return _digest_of(weight_files(resolve(name)))


def describe(name: str, dtype: str = "float32") -> dict[str, Any]:
    """The manifest's entry of a model.

    `digest` covers the weight files, `config_digest` the settings that decide how they are used.
    """
    _check_dtype(dtype)
    source = resolve(name)
    config = _read_config(source, name)
    files = weight_files(source)
    return {
        "name": source.name,
        "commit": source.commit,
        "digest": _digest_of(files),
        "config_digest": _config_digest(config),
        "dtype": dtype,
        "architecture": ", ".join(config.get("architectures") or ()) or config.get("model_type"),
        "parameters": _count_parameters(files, name),
    }


def weight_files(source: Source) -> list[Path]:
    """The safetensors files of a model folder and their index, by name."""
    files = sorted({path for pattern in _WEIGHT_FILES for path in source.folder.glob(pattern)})
    if any(path.suffix == ".safetensors" for path in files):
        return files
    if any(path for pattern in _PICKLES for path in source.folder.glob(pattern)):
        raise UserError(
            f"model {source.name} has only pickle weights, which are not read because pickle runs code: "
            "convert them once with save_pretrained of a transformers you trust with the file."
        )
    raise UserError(f"model {source.name}: no *.safetensors weights in {source.folder}.")


def _from_hub(name: str, patterns: tuple[str, ...]) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    try:
        folder = Path(
            snapshot_download(repo, revision=revision or None, allow_patterns=list(patterns), ignore_patterns=["*/*"])
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"model {name}: there is no such folder, and the hub did not give it ({_first_line(error)}). "
            "Check the spelling, or give the path of a local folder."
        ) from error
    return Source(folder, repo, commit=folder.name)


def _config_in(source: Source, name: str, trust_remote_code: bool) -> "PretrainedConfig":
    from transformers import AutoConfig

    if not (source.folder / "config.json").is_file():
        raise _no_config(source, name)
    with _in_words(name):
        return AutoConfig.from_pretrained(source.folder, trust_remote_code=trust_remote_code)  # type: ignore[no-any-return]


def _recorded_name(folder: Path) -> str:
    """Relative to the project where it lies inside it, so that a moved project still finds its models."""
    absolute, project = folder.resolve(), Path.cwd()
    if absolute.is_relative_to(project):
        return absolute.relative_to(project).as_posix()
    return absolute.as_posix() if folder.is_absolute() else Path(os.path.relpath(absolute, project)).as_posix()


def _read_config(source: Source, name: str) -> dict[str, Any]:
    try:
        config = json.loads((source.folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _no_config(source, name) from None
    except ValueError as error:
        raise UserError(f"model {name}: {source.folder / 'config.json'} is not JSON ({error}).") from None
    if not isinstance(config, dict):
        raise UserError(f"model {name}: {source.folder / 'config.json'} is not a JSON object.")
    return config


def _no_config(source: Source, name: str) -> UserError:
    adapter = source.folder / "adapter_config.json"
    if not adapter.is_file():
        return UserError(f"model {name}: {source.folder} has no config.json, so it is not a model folder.")
    try:
        base = json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError):
        base = "a model that it does not name"
    return UserError(
        f"model {name}: {source.folder} holds a LoRA adapter of {base}, not a whole model: train it with --merge, or name"
        " the merged model."
    )


def _config_digest(config: Mapping[str, Any]) -> str:
    settings = {key: value for key, value in config.items() if key not in _INERT_CONFIG_KEYS and value is not None}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _count_parameters(files: list[Path], name: str) -> int:
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in files:
        if file.suffix != ".safetensors":
            continue
        try:
            with safe_open(file, framework="numpy") as tensors:
                names = tensors.keys()
                total += sum(math.prod(tensors.get_slice(tensor).get_shape()) for tensor in names)
        except SafetensorError as error:
            raise UserError(
                f"model {name}: {file} is damaged ({_first_line(error)}); copy or download it again."
            ) from error
    return total


def _check_dtype(dtype: str) -> None:
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}.")


def _default_device() -> str:
    from transformers.utils.import_utils import is_torch_cuda_available

    return "cuda" if is_torch_cuda_available() else "cpu"


def _drop_nothing(config: Any) -> None:
    """Sets every dropout of a configuration, and of those nested in it, to 0."""
    for key in [key for key in vars(config) if "drop" in key]:
        if isinstance(getattr(config, key), float):
            setattr(config, key, 0.0)
    for key in getattr(config, "sub_configs", {}):
        if (nested := getattr(config, key, None)) is not None and nested is not config:
            _drop_nothing(nested)


def _check_complete(name: str, found: Mapping[str, Any]) -> None:
    """Weights that the files lack would be random numbers, and nothing later would say so."""
    lacking = sorted(found["missing_keys"]) + sorted(str(key) for key in found["mismatched_keys"])
    if lacking:
        raise UserError(
            f"model {name}: its files lack {len(lacking)} weights that its config.json asks for (first: {lacking[0]})."
        )


@contextmanager
def _in_words(name: str, wanted: str = "a causal language model") -> Iterator[None]:
    """What transformers raises for a folder it cannot load, as one sentence."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise UserError(
                f"model {name} comes with Python code of its own, which is not run unless you say --trust-remote-code."
            ) from error
        raise UserError(f"model {name} cannot be loaded as {wanted}: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _digest_of(files: list[Path]) -> str:
    lines = [[path.name, sha] for path, sha in zip(files, _file_hashes(files), strict=True)]
    return hashlib.sha256(json.dumps(lines, separators=(",", ":")).encode()).hexdigest()


def _file_hashes(files: list[Path]) -> list[str]:
    """sha256 of each file; large files are hashed once and remembered by path, size and time."""
    cache = _load_hashes()
    hashes, fresh = [], {}
    for file in files:
        path, stat = str(file.resolve()), file.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = cache.get(path)
        if not (known and known[:2] == stamp):
            with file.open("rb") as stream:
                known = fresh[path] = [*stamp, hashlib.file_digest(stream, "sha256").hexdigest()]
        hashes.append(str(known[2]))
    if fresh:
        _save_hashes(fresh)
    return hashes


def _hash_cache() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "prefdata" / "file_hashes.json"


def _load_hashes() -> dict[str, list[Any]]:
    """A missing, damaged or foreign cache is an empty one: it only saves time."""
    try:
        entries = json.loads(_hash_cache().read_text(encoding="utf-8"))
        return {path: entry for path, entry in entries.items() if len(entry) == 3 and len(entry[2]) == 64}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _save_hashes(fresh: dict[str, list[Any]]) -> None:
    """Replaces the file whole, so that a reader or a killed writer never leaves half of it."""
    target = _hash_cache()
    with suppress(OSError):
        target.parent.mkdir(parents=True, exist_ok=True)
        handle, staged = tempfile.mkstemp(dir=target.parent, prefix=target.name)
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            json.dump(_load_hashes() | fresh, stream)
        os.replace(staged, target)
