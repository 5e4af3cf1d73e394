"""TRL's DPO and KTO trainers on what a version stores: its token ids, its loss masks, its reference log-probs.

    prefdata export v3 --to trl -o v3-trl

    from datasets import load_dataset
    from trl import DPOConfig
    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    rows = load_dataset("v3-trl")
    config = DPOConfig("runs/trl", max_length=2048, beta=0.1)
    StoredReferenceDPOTrainer("Qwen/Qwen2.5-0.5B-Instruct", config, rows["train"], rows["test"]).train()

Written for TRL 1.16. As they come, its trainers tokenise the text again (with what the template writes after the end of a
turn), cut rows at `max_length`, and run the reference model over every row or in every step. Here the stored ids are
what is trained, nothing is cut, and DPO runs no reference model (under FSDP, TRL loads one and drops it again). The policy
may be any model with the version's tokenizer; DPO also takes a streamed data set, which TRL's precomputing does not.
The losses, metrics and everything else are TRL's own.

Not read: `preference` (the probability that chosen is better) and `weight`, for which TRL's losses have no place.
"""

from typing import Any

import torch
from torch import Tensor
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DataCollatorForPreference, DPOTrainer
from trl.trainer.kto_config import KTOConfig
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference, KTOTrainer

PAIR_COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "ref_chosen_logps", "ref_rejected_logps")
PAIR_MASKS = ("chosen_loss_mask", "rejected_loss_mask")
UNPAIRED_COLUMNS = ("prompt_ids", "completion_ids", "label", "ref_completion_logps")
UNPAIRED_MASKS = ("completion_loss_mask",)
# a partner as a version freezes it, and as TRL reads it: tokens, mask, the reference's sum
PARTNER_COLUMNS = {
    "partner_ids": "KL_completion_ids",
    "partner_loss_mask": "KL_loss_mask",
    "ref_partner_logps": "ref_KL_logps",
}
_SAME_MODEL = 0.05  # nats per token, over a batch: more lies between two models than between two ways to run one
_ANY_ID = 0  # padding is neither attended to nor scored


class StoredReferenceDPOTrainer(DPOTrainer):
    """DPOTrainer that reads an export of pairs with reference log-probs.

    It takes what DPOTrainer takes, but for a reference model. `precompute_ref_log_probs` is on: that is how DPOTrainer
    reads log-probs from its rows. Any `loss_type` that needs no more than sums works; `ld_alpha`, which weighs
    tokens one by one, is refused. A row longer than `max_length` is refused too: its stored sums are of the whole. Rows to
    evaluate on are given at the start: once it has trained, TRL's `evaluate` takes no others without a reference model.
    """

    def __init__(
        self, model: Any, args: DPOConfig, train_dataset: Any, eval_dataset: Any = None, **further: Any
    ) -> None:
        if args.ld_alpha is not None:
            raise ValueError("ld_alpha weighs the reference's tokens one by one, and the export holds their sums")
        args.precompute_ref_log_probs = True
        further.setdefault("data_collator", PairCollator(_ANY_ID, args.max_length))
        super().__init__(model, None, args, train_dataset=train_dataset, eval_dataset=eval_dataset, **further)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: DPOConfig, dataset_name: str) -> Any:
        """The stored ids as they are, in place of the text tokenised again."""
        return _stored(dataset, PAIR_COLUMNS, PAIR_MASKS)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """They stand in the rows."""
        return dataset

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [*PAIR_COLUMNS, *PAIR_MASKS]


class StoredReferenceKTOTrainer(KTOTrainer):
    """KTOTrainer that reads an export of unpaired rows with reference log-probs.

    The loss of a row is 1 - sigmoid(beta (r - kl)) if it is desirable, else 1 - sigmoid(beta (kl - r)), with

        r  = log pi(y_i | x_i) - log ref(y_i | x_i)
        kl = max(0, mean over the batch of log pi(y_{i-1} | x_i) - log ref(y_{i-1} | x_i)), without a gradient

    TRL estimates the KL term from mismatched pairs: in each run of `per_device_train_batch_size` rows of the data set, in
    order, the answers move on by one prompt (the first prompt gets the last answer), the policy reads these sequences in
    every step, and the mean goes over the batches of all processes. So rows are read in order and never shuffled between
    epochs; shuffle the data set before it is handed over. `r` reads the stored `ref_completion_logps`. Which answer meets
    which prompt depends on the batch size and the order, so a version does not know log ref(y_{i-1} | x_i): it is
    computed here, once before training, with half of the forwards that TRL needs (the matched pairs are not run again).
    For that the model must be the reference at the start, or the reference is given as `ref_model`; the first batch is
    compared with the stored sums, and another model is refused.

    The reference is not run at all with `loss_type="apo_zero_unpaired"`, which has no KL term, nor where the rows carry a
    frozen partner and its sum (`partner_ids`, `ref_partner_logps`): then that takes the place of y_{i-1}.

    A row longer than `max_length` is refused; a mismatched sequence that is longer is cut there, as TRL does, unless its
    sum is a stored one.
    """

    def __init__(
        self, model: Any, args: KTOConfig, train_dataset: Any, eval_dataset: Any = None, **further: Any
    ) -> None:
        args.precompute_ref_log_probs = True
        self._collator = further.setdefault("data_collator", UnpairedCollator(_ANY_ID, args.max_length))
        self._compared = False
        super().__init__(model, args=args, train_dataset=train_dataset, eval_dataset=eval_dataset, **further)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: KTOConfig, dataset_name: str) -> Any:
        """The stored ids as they are, and beside each answer the one before it in its batch."""
        rows = _stored(dataset, UNPAIRED_COLUMNS, UNPAIRED_MASKS)
        if not self.calculate_KL or "KL_completion_ids" in rows.column_names:
            return rows
        if {"partner_ids", "ref_partner_logps"} <= {*rows.column_names}:
            self._collator.partners_are_whole = True
            return rows.rename_columns(
                {name: PARTNER_COLUMNS[name] for name in PARTNER_COLUMNS if name in rows.column_names}
            )
        return rows.map(_moved_on, batched=True, batch_size=args.per_device_train_batch_size)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Of mismatched pairs alone."""
        if not self.calculate_KL or "ref_KL_logps" in dataset.column_names:
            return dataset
        return super()._precompute_ref_logps(dataset, name, batch_size)

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The stored sums of a batch, and the model's of its mismatched sequences."""
        if not self._compared:
            computed, partners = super().compute_ref_log_probs(model, inputs)
            _refuse_another_model(computed, inputs)
            self._compared = True
            return inputs["ref_logps"], partners
        mismatched = {name: inputs[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask")}
        self.calculate_KL = False  # one forward, over what would otherwise be the second
        try:
            partners, _ = super().compute_ref_log_probs(model, mismatched)
        finally:
            self.calculate_KL = True
        return inputs["ref_logps"], partners

    def _set_signature_columns_if_needed(self) -> None:
        self._signature_columns: Any = [
            *UNPAIRED_COLUMNS,
            *UNPAIRED_MASKS,
            *PARTNER_COLUMNS.values(),
            "ref_logps",
        ]


class PairCollator(DataCollatorForPreference):
    """Batches of pairs in which tokens that the loss mask leaves out are not scored."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As its parent, which puts all chosen sides before all rejected ones."""
        for side in ("chosen", "rejected"):
            _refuse_longer(examples, f"{side}_ids", self.max_length)
        batch: dict[str, Any] = super().torch_call(examples)
        chosen, rejected = batch["completion_mask"].chunk(2)
        _mask(chosen, examples, "chosen_loss_mask")
        _mask(rejected, examples, "rejected_loss_mask")
        return batch


class UnpairedCollator(DataCollatorForUnpairedPreference):
    """Batches of judged answers with their stored sums; masks as in `PairCollator`."""

    partners_are_whole: bool = False  # their sums are stored, so none may be cut

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """As its parent; `ref_logps` are the stored sums."""
        for answer in ("completion_ids", *(("KL_completion_ids",) if self.partners_are_whole else ())):
            _refuse_longer(examples, answer, self.max_length)
        batch: dict[str, Any] = super().torch_call(examples)
        batch["ref_logps"] = torch.tensor([example["ref_completion_logps"] for example in examples])
        _mask(batch["completion_mask"], examples, "completion_loss_mask")
        if "KL_completion_mask" in batch:
            _mask(batch["KL_completion_mask"], examples, "KL_loss_mask")
        return batch


def _stored(dataset: Any, columns: tuple[str, ...], masks: tuple[str, ...]) -> Any:
    """The columns that are trained on. Those that this class added to rows it saw before stay."""
    missing = [name for name in columns if name not in dataset.column_names]
    if missing:
        raise ValueError(
            f"the rows lack {', '.join(missing)}: make a version with `python -m flows.add_reference`, and export that with "
            "`prefdata export VERSION --to trl`"
        )
    wanted = {*columns, *masks, *PARTNER_COLUMNS, *PARTNER_COLUMNS.values(), "ref_logps"}
    return dataset.select_columns([name for name in dataset.column_names if name in wanted])


def _moved_on(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """Each row's partner is the answer before it; the first one's is the last."""
    moved = {"KL_completion_ids": rows["completion_ids"], "KL_loss_mask": rows["completion_loss_mask"]}
    return {name: [values[-1], *values[:-1]] for name, values in moved.items()}


def _mask(completion_mask: Tensor, examples: list[dict[str, Any]], name: str) -> None:
    """Clear what a row's mask leaves out; a row without one keeps all."""
    for scored, example in zip(completion_mask, examples, strict=True):
        if (kept := example.get(name)) is not None:
            start = len(example["prompt_ids"])
            place = scored[start : start + len(kept)]  # of a mismatched sequence that was cut, what is left
            place.copy_(torch.tensor(kept)[: len(place)])


def _refuse_longer(examples: list[dict[str, Any]], answer: str, most: int | None) -> None:
    longest = max(len(example["prompt_ids"]) + len(example[answer]) for example in examples)
    if most is not None and longest > most:
        raise ValueError(
            f"a row has {longest} tokens and max_length is {most}: its stored sums are of all of them, so raise max_length "
            "(the version's own limit stands in _export.json), or filter the rows"
        )


def _refuse_another_model(computed: Tensor, inputs: dict[str, Tensor]) -> None:
    apart = (computed - inputs["ref_logps"]).abs().sum().item() / inputs["completion_mask"].sum().item()
    if not apart < _SAME_MODEL:
        raise ValueError(
            f"the model is not the reference of these rows: its log-probs are {apart:.3g} nats per token from the stored "
            "ones; start from the reference, or give it as ref_model"
        )
