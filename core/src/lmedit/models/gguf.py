"""GGUF files as model folders. transformers converts a file once, to float32 in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import io
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from safetensors import SafetensorError
from tqdm import tqdm

from lmedit.errors import ArtifactError, ModelError
from lmedit.models.config_values import check_values
from lmedit.models.gguf_header import Header, read_header
from lmedit.models.refusals import check_class, first_line
from lmedit.models.sources import MODELS, models_folder, pulled_folder
from lmedit.models.written import compare_written
from lmedit.storage.atomic import replacing_folder
from lmedit.storage.escapes import for_terminal
from lmedit.storage.json_files import read_entries, write_entries

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedModel

SUFFIX = ".gguf"
RECORD = "lmedit-gguf.json"
"""In a converted folder: the file that says which GGUF file it was made from."""
PACKAGES = ("gguf", "accelerate")
"""The packages that transformers needs to read a GGUF file."""
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
"""Special tokens: their names in transformers, and in the keys of a GGUF file."""
TRIAL = "The tower stands by the river, since 1889."
"""A text that every tokenizer of English can encode and decode."""


@dataclass(frozen=True)
class Converted:
    """The model folder made from a GGUF file, and a note on the losses of the conversion."""

    folder: Path
    note: str
    world: str | None = None
    """The name of the model that can be pulled, if the file is exactly that model's."""


def folder_of(file: Path) -> Converted:
    """Return the model folder of the GGUF *file* in the cache. Write it first if it is missing.

    Raises `ModelError` if the file cannot be read or the folder cannot be written.
    """
    folder = converted_folder(file)
    with name_write_errors(folder), locked(folder):
        if not folder.is_dir():
            check_packages(file)
            header = read_header(file)
            with replacing_folder(folder) as place:
                convert(file, header, place)
                write_entries(place / RECORD, {"file": file.name, **describe_gguf(file, header)})
    record = record_of(folder)
    same = (name for name, source in MODELS.items() if source.sha256 == record.get("sha256"))
    return Converted(folder, f"{file.name}: {record.get('note')}", next(same, None))


def record_of(folder: Path) -> dict[str, Any]:
    """Read the facts stored with a converted model. Raises `ModelError` if they are damaged."""
    path = folder / RECORD
    try:
        return read_entries(path)
    except (OSError, ValueError) as error:
        what = f"{path} is damaged ({first_line(error)})"
        raise ModelError(f"{what}; delete the folder {folder}, lmedit makes it again") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Let no other process write *folder* of the cache at the same time."""
    locks = folder.parent / "locks"
    locks.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{folder.name}.lock"):
        yield


def converted_folder(file: Path) -> Path:
    """The folder of the cache for the GGUF *file*; its name contains the file's SHA-256.

    If the file belongs to a model that was pulled, it is the folder of that model.
    """
    digest = digest_of(file)
    for source in MODELS.values():
        if source.sha256 == digest and pulled_folder(source.name).is_dir():
            return pulled_folder(source.name)
    return models_folder() / f"gguf-{digest[:12]}"


def digest_of(file: Path) -> str:
    """SHA-256 of the bytes of *file*; 64 hex digits."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def describe_gguf(file: Path, header: Header) -> dict[str, Any]:
    """The facts to store with the model made from the GGUF *file*."""
    from transformers import __version__

    return {
        "sha256": digest_of(file),
        "size": file.stat().st_size,
        "types": dict(header.types),
        "note": header.note,
        "transformers": __version__,
    }


def check_packages(what: Path | str) -> None:
    """Raise `ModelError` if a package is missing; *what* is the GGUF file that needs it."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        what = f"{what} is a GGUF file, which needs the package {' and '.join(missing)}"
        raise ModelError(f"{what}; pip install 'lmedit[gguf]'")


@contextmanager
def name_write_errors(folder: Path, parts: Path | None = None) -> Iterator[None]:
    """Turn a failed write of *folder* into a `ModelError` with the remedy.

    It says if the folder *parts* keeps a download for the next call.
    """
    try:
        yield
    except (ArtifactError, OSError) as error:
        what = str(error)
        if isinstance(error, OSError):
            what = f"cannot write {folder}: {error.strerror or error}; {NOTHING}"
        if parts is not None and parts.is_dir():
            what = what.replace(NOTHING, f"the download is kept in {parts}")
        raise ModelError(f"{what}; make room or set LMEDIT_CACHE, and run again") from error


NOTHING = "nothing was kept"
"""How `storage.atomic` and `name_write_errors` say that a failed write left nothing."""


def config_of(file: Path) -> Any:
    """Read the config of the GGUF *file*, without its tensors. Raises `ModelError`."""
    check_packages(file)
    header = read_header(file)
    with _alone(file) as where:
        return _config(where, file, header)


def convert(file: Path, header: Header, place: Path) -> None:
    """Write the model of the GGUF *file* to the empty folder *place*, as float32 safetensors.

    Raises `ModelError` if transformers cannot read it, `OSError` if it cannot be written.
    """
    with _alone(file) as where, _steps(file.name, 4) as step:
        step("config")
        config = _config(where, file, header)
        step("weights")
        with _name_errors(file, header, "weights"):
            model = _model(where, config)
        step("tokenizer")
        with _name_errors(file, header, "tokenizer"):
            tokenizer = _tokenizer(where, header)
        step("writing")
        try:
            with _bars_hidden():
                model.save_pretrained(place)
                tokenizer.save_pretrained(place)
        except SafetensorError as error:  # a full disk, as safetensors tells it
            raise OSError(str(error)) from error
        wrong, _ = compare_written(place, dict(model.named_parameters()), model.get_parameter)
        if wrong is not None:
            raise ModelError(f"{file}: {wrong} was not written as it was read; run again")


def drop_remainder(model: Any) -> None:
    """Remove the marks of a GGUF file from *model* if all its weights are plain floats.

    transformers sets these marks on a model that it converted, and then refuses to save it.
    """
    quantizer = getattr(model, "hf_quantizer", None)
    left = getattr(model.config, "quantization_config", None)
    if not any(_is_gguf(each) for each in (left, getattr(quantizer, "quantization_config", None))):
        return
    if all(parameter.is_floating_point() for parameter in model.parameters()):
        model.hf_quantizer = None
        model.is_quantized = False
        if left is not None:
            del model.config.quantization_config


def _is_gguf(quantised: Any) -> bool:
    """Whether *quantised*, a quantisation config (a dictionary or an object), is for GGUF."""
    values = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
    return str(getattr(values.get("quant_method"), "value", values.get("quant_method"))) == "gguf"


@contextmanager
def _alone(file: Path) -> Iterator[dict[str, Any]]:
    """Arguments for transformers' loaders, with *file* alone in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{SUFFIX}"
        try:
            link.symlink_to(file.resolve())
        except OSError:  # a system without links
            link = file.resolve()
        yield {
            "pretrained_model_name_or_path": str(link.parent),
            "gguf_file": str(link),
            "local_files_only": True,
            "trust_remote_code": False,
        }


def _config(where: dict[str, Any], file: Path, header: Header) -> Any:
    from transformers import AutoConfig

    with _name_errors(file, header, "config"):
        config = AutoConfig.from_pretrained(**where)
    check_values(str(file), config.to_dict())
    check_class(str(file), type(config), config.to_dict())
    return config


def _model(where: dict[str, Any], config: Any) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    found: Any = AutoModelForCausalLM.from_pretrained(
        **where,
        **_dequantise(),
        config=config,
        dtype=torch.float32,
        output_loading_info=True,
    )
    model, info = found
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"it lacks {len(missing)} tensors: {', '.join(missing[:3])}")
    drop_remainder(model)
    return model


def _dequantise() -> dict[str, Any]:
    """Arguments that ask transformers for plain floats; new versions can keep weights packed."""
    from transformers.utils import quantization_config

    kind = getattr(quantization_config, "GgufConfig", None)
    return {} if kind is None else {"quantization_config": kind(dequantize=True)}


def _tokenizer(where: dict[str, Any], header: Header) -> Any:
    """Read the tokenizer and try it; some versions of transformers read it wrongly."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    for kind in (PreTrainedTokenizerFast, AutoTokenizer):
        tokenizer: Any = kind.from_pretrained(**where)
        for name, key in SPECIAL.items():
            if (number := header.values.get(f"tokenizer.ggml.{key}_token_id")) is not None:
                setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(number))
        said = tokenizer.decode(tokenizer(TRIAL).input_ids, skip_special_tokens=True)
        if said.strip() == TRIAL:
            return tokenizer
    raise ValueError("it does not decode the text that it encodes")


@contextmanager
def _name_errors(file: Path, header: Header, part: str) -> Iterator[None]:
    """Turn any error in reading a *part* of *file* into a `ModelError` of one line."""
    from transformers import __version__

    try:
        with _bars_hidden():
            yield
    except MemoryError as error:
        what = f"{file} does not fit into memory as float32"
        raise ModelError(f"{what}; use a machine with more memory, or a smaller model") from error
    except Exception as error:
        raise ModelError(
            f"{file}: transformers {__version__} cannot read the {part} of its architecture "
            f"{header.architecture!r} ({first_line(error)}); update transformers, or give the "
            "model as a safetensors folder"
        ) from error


def _bars_hidden() -> contextlib.redirect_stderr[io.StringIO]:
    """Hide the bars that transformers draws on stderr, terminal or not."""
    return contextlib.redirect_stderr(io.StringIO())


@contextmanager
def _steps(name: str, count: int) -> Iterator[Callable[[str], None]]:
    """Show a bar of *count* steps on stderr; call the yielded function when a step begins."""
    bar = tqdm(total=count, unit="step", disable=None, leave=False, file=sys.stderr)

    def step(what: str) -> None:
        bar.set_description(for_terminal(f"{name}: {what}"), refresh=False)
        bar.update()

    with bar:
        yield step
