"""`grpo export`: a checkpoint as a Hugging Face folder, which transformers and peft load without this package.

It reads a run's folder, whoever writes to it at the time, and writes nothing there. A checkpoint has the same names
whatever the number of ranks and the strategy, so the folder does not depend on them either."""

import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo import checkpoint
from grpo.chat import Chat
from grpo.config import RunConfig
from grpo.errors import CheckpointError, ConfigError
from grpo.folder import RunFolder, named_disk_errors
from grpo.model import base_of, end_token_ids, load_model, load_tokenizer

CPU = torch.device("cpu")
AGAIN = "then export again (nothing was left there)"

Form = Literal["merged", "adapter"]
"""Of what adapters were trained: the whole model with the adapters in it, or the adapters alone."""


def export(
    run: Path,
    *,
    output: Path,
    checkpoint_name: str | None,
    form: Form | None,
    say: Callable[[str], None],
    change: Callable[[PreTrainedModel], PreTrainedModel] | None = None,
) -> Path:
    """Write the policy of a checkpoint of `run` to the folder `output`, and return the checkpoint's path.

    `checkpoint_name` is a name under the run's checkpoints, "best", or a path; None takes the newest step that is
    whole. `form` is for a run with model.lora; None is merged. `change` is made to the whole model before it is
    written; adapters alone do not hold it. Raises ConfigError for a wrong command, CheckpointError
    where there is no such checkpoint or it is not whole, DiskError; then nothing is at `output`."""
    folder = RunFolder(run)
    config = folder.read_config()
    _check_command(config, output=output, form=form)
    if form == "adapter" and change is not None:
        raise ConfigError("--adapter: adapters alone do not hold a vector; leave out --steer, or take --merged")
    source = find_source(folder.checkpoints, checkpoint_name, say=say)
    weights = read_weights(source)
    tokenizer = load_tokenizer(config.model)
    model = _with_weights(config, weights, tokenizer=tokenizer)
    chat = Chat(tokenizer, config.chat, end_token_ids=end_token_ids(model, tokenizer))
    if config.chat.system_prompt is not None:
        say("the prompts of this run began with chat.system_prompt, which no template holds: give it as a message")
    with _written_whole(output) as temporary:
        if form == "adapter":
            assert config.model.path is not None  # _check_command refuses an architecture
            _save_adapters(model, temporary, base=config.model.path)
        else:
            merged = _merged(model)
            changed = merged if change is None else change(merged)
            _save_model(changed, temporary, chat=chat, to_float16=config.model.dtype == "float16")
        _save_tokenizer(tokenizer, temporary, template=chat.template)
    return source


def _check_command(config: RunConfig, *, output: Path, form: Form | None) -> None:
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ConfigError(f"--output {output}: is there already, and not an empty folder; name another one")
    if form is not None and config.model.lora is None:
        raise ConfigError(
            f"--{form} is for a run that trained adapters, and this one has no model.lora: leave it out, the folder "
            "holds the whole model"
        )
    if form == "adapter" and config.model.path is None:
        raise ConfigError(
            "--adapter: the base of this run was drawn from model.architecture and the seed, so there is no "
            "model.path that the adapters could be loaded on; take --merged"
        )


def find_source(checkpoints: Path, name: str | None, *, say: Callable[[str], None]) -> Path:
    """The folder of the checkpoint that `name` names; tells of newer ones that are torn."""
    if name is None:
        newest, faults = checkpoint.newest_whole(checkpoints)
        for fault in faults:
            say(f"passed over: {fault}")
        if newest is None:
            raise CheckpointError(f"{checkpoints}: no whole checkpoint of a step; {_others(checkpoints)}")
        return newest
    if name == "best":
        best = sorted(checkpoints.glob("best_*"))
        if not best:
            raise CheckpointError(
                f"{checkpoints}: no best checkpoint (evaluation.every_steps above 0 keeps one); {_others(checkpoints)}"
            )
        return best[-1]
    for path in (checkpoints / name, Path(name)):
        if path.is_dir():
            return path
    raise CheckpointError(f"--checkpoint {name}: neither in {checkpoints} nor a folder; {_others(checkpoints)}")


def _others(checkpoints: Path) -> str:
    names = sorted(path.name for path in checkpoints.glob("[!.]*"))
    return f"--checkpoint takes {', '.join(names)}" if names else "the run has saved none yet"


def read_weights(source: Path) -> dict[str, Tensor]:
    """Those of the checkpoint `source`, on the CPU. Raises CheckpointError where it is not whole, or is gone."""
    try:
        weights, _, _ = checkpoint.load(source, device=CPU)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{source}: was deleted while it was read, since its run goes on and keeps checkpoint.keep_last alone; "
            "try again"
        ) from error
    return weights


def _with_weights(config: RunConfig, weights: Mapping[str, Tensor], *, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    # The head is the same weight whatever it computes in, and a CPU is not given float16: float32 holds all of it.
    changes: dict[str, Any] = {"float32_head": False} | (
        {"dtype": "float32"} if config.model.dtype == "float16" else {}
    )
    on_cpu = config.model.model_copy(update=changes)
    model = load_model(on_cpu, tokenizer=tokenizer, seed=config.run.seed, device=CPU)
    checkpoint.load_weights(model, weights)
    return model


def _merged(model: nn.Module) -> PreTrainedModel:
    """The transformers model; adapters are added into its weights, which are rounded to their type once."""
    base = base_of(model)
    if model is base:
        return base
    state = model.state_dict()
    holders = Counter(tensor.data_ptr() for tensor in state.values())
    tied = [name for name, tensor in state.items() if ".base_layer." in name and holders[tensor.data_ptr()] > 1]
    if tied:
        raise ConfigError(
            f"--merged: {tied[0]} has an adapter and is tied to another weight, which merging would change as well; "
            "take --adapter"
        )
    adapted: Any = model
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def _save_model(model: PreTrainedModel, folder: Path, *, chat: Chat, to_float16: bool) -> None:
    if to_float16:
        model.half()
    model.config.use_cache = True  # which training has no use for
    generation = model.generation_config
    assert generation is not None  # of every causal language model of transformers
    # A completion ends for who loads the folder where it ended in training.
    ends = list(chat.end_token_ids)
    generation.eos_token_id = ends if len(ends) > 1 else ends[0]
    if generation.pad_token_id is None:
        generation.pad_token_id = chat.tokenizer.pad_token_id
    model.save_pretrained(folder)


def _save_adapters(model: nn.Module, folder: Path, *, base: str) -> None:
    adapted: Any = model
    # A folder is named so that it is found from wherever the adapters are loaded.
    name = str(Path(base).absolute()) if Path(base).exists() else base
    adapted.peft_config["default"].base_model_name_or_path = name
    # The base's embeddings are not trained; unless told so, peft asks the hub whether they changed.
    adapted.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()  # peft's model card, an empty form


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, template: str) -> None:
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


@contextmanager
def _written_whole(output: Path) -> Iterator[Path]:
    """A folder beside `output`, which becomes `output` when the context ends well and is deleted when it does not."""
    output = output.absolute()
    temporary = output.with_name(f".{output.name}.tmp")
    with named_disk_errors(output, then=AGAIN):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            with _quoted_disk_errors():
                yield temporary
            for file in (*temporary.rglob("*"), temporary):
                _sync(file)
            temporary.rename(output)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


@contextmanager
def _quoted_disk_errors() -> Iterator[None]:
    """Give back the OSError whose number safetensors and tokenizers quote; the latter raise a bare Exception."""
    try:
        yield
    except Exception as error:
        quoted = re.search(r"os error (\d+)", str(error))
        if isinstance(error, OSError) or quoted is None:
            raise
        raise OSError(int(quoted[1]), os.strerror(int(quoted[1]))) from error


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
