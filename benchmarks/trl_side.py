"""TRL's side: a step of its DPOTrainer, and its precomputing of reference log-probs, in the settings that suit it best.

On a CPU: no gradient checkpointing, reference log-probs computed before, no truncation, dropout off. Its collator,
its fused head and its metrics are as they come.
"""

import os
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, disable_progress_bars
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from benchmarks.stepping import BETA, Stepper, arguments
from prefdata.errors import UserError
from prefdata.logprobs import Tree

Example = dict[str, Any]


def examples(trees: Sequence[Tree], reference: Sequence[Sequence[float]] | None = None) -> list[Example]:
    """Pairs as rows of TRL's data set, with the sums of their completions under the reference."""
    rows: list[Example] = [
        {"prompt_ids": list(tree.trunk), "chosen_ids": list(tree.branches[0]), "rejected_ids": list(tree.branches[1])}
        for tree in trees
    ]
    for row, (chosen, rejected) in zip(rows, reference or (), strict=False):
        row |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    return rows


class TrlStep:
    """Steps of trl.DPOTrainer."""

    def __init__(self, model: Any, *, bfloat16: bool = False, **more: Any) -> None:
        self.trainer = _trainer(model, bf16=bfloat16, **more)
        self._stepper = Stepper(self.trainer)

    def __call__(self, rows: list[Example]) -> float:
        """One step, collating included, as ours includes laying out; its loss."""
        return self._stepper.step(self.trainer.data_collator(rows))


class TrlReference:
    """Precomputing by trl.DPOTrainer: its loop over batches without what it writes."""

    def __init__(self, model: Any, batch_size: int, *, bfloat16: bool = False) -> None:
        # a reference of its own: its head then computes log-probs and nothing else
        policy = type(model)(
            type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 1, "layer_types": None})
        )
        self.trainer = _trainer(policy, reference=model, bf16=bfloat16)
        self._batch_size = batch_size

    def __call__(self, rows: list[Example]) -> list[tuple[float, float]]:
        """(chosen, rejected) sums of every row, in nats."""
        trainer, found = self.trainer, []
        loader: Any = DataLoader(rows, batch_size=self._batch_size, collate_fn=trainer.data_collator)  # type: ignore[arg-type]
        for batch in trainer.accelerator.prepare(loader):
            chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
            found += list(zip(chosen.tolist(), rejected.tolist(), strict=True))
        return found


def _trainer(model: Any, *, reference: Any = None, **more: Any) -> Any:
    try:
        from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]
    except ImportError as problem:
        raise UserError(f"TRL, which this is measured against, cannot be imported ({problem}): install it") from problem

    # a data set is asked for, and its reference log-probs are computed at once
    one = {"prompt": "what", "chosen": "this", "rejected": "that"}
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    with arguments(
        DPOConfig, beta=BETA, max_length=None, precompute_ref_log_probs=True, **{"bf16": False, **more}
    ) as told:
        trainer: Any = DPOTrainer(
            model=model,
            ref_model=reference,
            args=told,  # type: ignore[arg-type]
            train_dataset=Dataset.from_list([one]),
            processing_class=_tokenizer(),
        )
    trainer.model.config.use_cache = False
    return trainer


def _tokenizer() -> PreTrainedTokenizerFast:
    """One that pads with 0, which is all that is asked of it."""
    words = WordLevel({"<pad>": 0, "<end>": 1}, unk_token="<end>")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), pad_token="<pad>", eos_token="<end>")
