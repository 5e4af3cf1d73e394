"""Low-rank adapters: a few new weights beside frozen ones, through peft.

Hu et al. 2021, arXiv:2106.09685: a layer W x becomes W x + (alpha / rank) B A x. B starts at 0, so the policy starts as
the model that it is put on.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from prefdata.errors import UserError

ALL = "all-linear"  # peft's name for every linear layer but the head
ALPHA_PER_RANK = 2.0
LR = 10.0  # times the learning rate of full fine-tuning: few weights have to go as far as all of them would
ADAPTER = "adapter"  # below a run folder that holds the merged model


def settings(rank: int, alpha: float | None, targets: str | None) -> dict[str, Any]:
    """What a run's configuration says of its adapter: rank, alpha, and the layers as a list of names or ALL."""
    named = sorted({name.strip() for name in targets.split(",")} - {""}) if targets is not None else []
    if targets is not None and not named:
        raise UserError("--lora-targets names no layer: give names with commas between them, such as q_proj,v_proj.")
    return {
        "rank": rank,
        "alpha": ALPHA_PER_RANK * rank if alpha is None else alpha,
        "targets": ALL if named in ([], [ALL]) else named,
    }


def attach(
    model: Any, adapter: Mapping[str, Any], *, policy: Mapping[str, Any], seed: int, scalar: bool = False
) -> Any:
    """The model with a fresh adapter on it; only the adapter has gradients. `policy` names the model in what is saved.

    scalar: the model has a head that gives one score, which is trained whole beside the adapter.
    """
    from peft import LoraConfig, get_peft_model

    targets = adapter["targets"]
    if targets != ALL:
        _check_targets(model, targets)
    config = LoraConfig(
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="SEQ_CLS" if scalar else "CAUSAL_LM",
        modules_to_save=["score"] if scalar else None,
        revision=policy["commit"],
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = get_peft_model(model, config)
    # get_peft_model names the folder that the weights were read from, which for a hub model is a cache
    made.peft_config["default"].base_model_name_or_path = policy["name"]
    return made


def save(model: Any, folder: Path, state: Mapping[str, Any] | None = None) -> None:
    """The adapter and its settings, as peft and transformers load them."""
    # an adapter of linear layers never holds the embeddings; left to itself, peft asks the hub whether they were resized
    model.save_pretrained(folder, state_dict=state, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a card of blanks


def _check_targets(model: Any, targets: Sequence[str]) -> None:
    from transformers.pytorch_utils import Conv1D

    layers = [name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))]
    absent = [target for target in targets if not any(f".{name}".endswith(f".{target}") for name in layers)]
    if absent:
        known = sorted({name.rpartition(".")[2] for name in layers})
        raise UserError(
            f"--lora-targets {','.join(absent)}: the model has no such linear layer; it has {', '.join(known)}."
        )
    head = _tied_head(model)
    if head is not None and (named := [target for target in targets if f".{head}".endswith(f".{target}")]):
        raise UserError(
            f"--lora-targets {','.join(named)}: the head's weights are those of the input embedding in this model, and"
            " merging would change both. Leave the head out."
        )


def _tied_head(model: Any) -> str | None:
    """The name of the output layer where its weights are also the input embedding's."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or head.weight is not embedding.weight:
        return None
    found: str = next(name for name, module in model.named_modules() if module is head)
    return found
