"""TRL trains on an export: its own losses, on the stored tokens and the stored reference.

Each loss is compared with the one that TRL gives with a reference model of its own, and with ours. The policy is another
model than the reference, so that no loss is what it would be for any data.
"""

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from prefdata import exports, models
from prefdata.versions import Version
from schemas.columns import TOKEN_IDS
from tests.export_world import World as ChatWorld
from tests.export_world import ingested, save_chat_model, text_pairs
from tests.tiny_models import save_llama
from tests.tiny_world import publish, save_model, with_reference
from tests.trainer_world import World
from trainers.objectives.batch import ReferencedPair
from trainers.objectives.dpo import dpo

STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Any:
    """TRL tells its makers of every trainer, unless it runs where CI is set."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("CI", "1")
        yield


@pytest.fixture(scope="module")
def policy(chat_world: ChatWorld, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model with the reference's tokenizer and other weights."""
    folder = tmp_path_factory.mktemp("policy") / "model"
    shutil.copytree(chat_world.model, folder)
    words = models.load_config(chat_world.model).vocab_size
    save_llama(folder, vocabulary=words, positions=512, seed=7)
    return str(folder)


def tokenizer(model: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def rows(version: Version, folder: Path, split: str = "train") -> Any:
    import datasets

    place = exports.export(version, "trl", out=str(folder / "export")).folder
    return datasets.load_dataset(str(place), split=split, cache_dir=str(folder / "cache"))


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"),
        "max_steps": STEPS,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-2,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        **more,
    }


def losses(trainer: Any) -> list[float]:
    """Of every step."""
    found: list[float] = []
    compute = trainer.compute_loss

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = compute(*args, **kwargs)
        found.append(loss.item())
        return loss

    trainer.compute_loss = recorded
    trainer.train()
    return found


def assert_equal_losses(one: list[float], other: list[float]) -> None:
    assert len(one) == len(other) == STEPS
    assert_close(torch.tensor(one), torch.tensor(other), atol=1e-4, rtol=0)


def stored_ids(version: Version, names: tuple[str, ...]) -> list[dict[str, list[int]]]:
    found: list[dict[str, list[int]]] = version.table("train", names).to_pylist()
    return found


def test_dpo_is_trls_own_on_the_stored_tokens(chat_world: ChatWorld, policy: str, tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    given = rows(chat_world.pairs, tmp_path)
    common = {"train_dataset": given, "processing_class": tokenizer(policy)}
    live = DPOTrainer(
        models.load_model(policy),
        models.load_model(chat_world.model),
        DPOConfig(**settings(tmp_path)),
        **common,
    )
    ours = StoredReferenceDPOTrainer(models.load_model(policy), DPOConfig(**settings(tmp_path)), **common)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    expected = stored_ids(chat_world.pairs, names)
    for trainer in (live, ours):  # this template ends where a turn ends, so that TRL's tokens are ours too
        assert trainer.train_dataset.select_columns(list(names)).to_list() == expected
    assert ours.ref_model is None
    found = losses(ours)
    assert_equal_losses(found, losses(live))
    assert abs(found[0] - 0.6931) > 0.05


def test_stored_tokens_are_trained_where_trl_would_make_others(chat_world: ChatWorld, tmp_path: Path) -> None:
    """This template writes a line feed after the end of a turn; an answer that was cut has no end at all."""
    from trl import DPOConfig, DPOTrainer

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    model = save_chat_model(tmp_path / "model", style="qwen25")
    options = {"model": model, "reference": model, "split": "train", "max_length": 120}
    long = {"prompt": "And?", "chosen": "The sea is wide. " * 20, "rejected": "No."}
    version = ingested(tmp_path / "data", tmp_path / "x.jsonl", [*text_pairs(5), long], **options)
    given, read = rows(version, tmp_path), tokenizer(model)
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    expected = stored_ids(version, names)
    assert "length" in version.table("train")["chosen_finish"].to_pylist()
    common = {"train_dataset": given, "processing_class": read}
    config = DPOConfig(**settings(tmp_path, precompute_ref_log_probs=True))
    theirs = DPOTrainer(models.load_model(model), None, DPOConfig(**settings(tmp_path)), **common).train_dataset
    ours = StoredReferenceDPOTrainer(models.load_model(model), config, **common)
    assert ours.train_dataset.select_columns(list(names)).to_list() == expected
    assert all(row["chosen_ids"] != stored["chosen_ids"] for row, stored in zip(theirs, expected, strict=True))
    # where the policy is the reference, stored and trained tokens agree or the loss would not be log 2
    assert losses(ours)[0] == pytest.approx(0.693147, abs=1e-4)


def test_dpo_keeps_loss_masks(world: World, tmp_path: Path) -> None:
    from trl import DPOConfig

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    table = world.version.table("train")
    assert table["chosen_loss_mask"].null_count < table.num_rows
    model = save_model(tmp_path / "policy", seed=5)
    config = DPOConfig(**settings(tmp_path, per_device_train_batch_size=table.num_rows, max_steps=1, beta=0.3))
    trainer = StoredReferenceDPOTrainer(
        models.load_model(model), config, rows(world.version, tmp_path), processing_class=tokenizer(model)
    )
    stored, scored = (
        {name: torch.tensor(rows_[name].to_pylist()) for name in ("ref_chosen_logps", "ref_rejected_logps")}
        for rows_ in (table, with_reference(table, model))
    )
    tokens = {name: torch.tensor(table[name].to_pylist()) for name in ("chosen_tokens", "rejected_tokens")}
    batch = ReferencedPair(
        chosen=scored["ref_chosen_logps"],
        rejected=scored["ref_rejected_logps"],
        ref_chosen=stored["ref_chosen_logps"],
        ref_rejected=stored["ref_rejected_logps"],
        **tokens,
    )
    assert losses(trainer) == pytest.approx([dpo(batch, beta=0.3).mean().item()], abs=1e-4)


@pytest.mark.parametrize("loss_type", ["kto", "apo_zero_unpaired"])
def test_kto_is_trls_own_on_the_stored_tokens(
    loss_type: str, chat_world: ChatWorld, policy: str, tmp_path: Path
) -> None:
    from trl import KTOConfig, KTOTrainer

    from examples.with_trl.stored_reference import StoredReferenceKTOTrainer

    given = rows(chat_world.unpaired, tmp_path)
    common = {"train_dataset": given, "processing_class": tokenizer(policy)}

    def config() -> Any:
        return KTOConfig(**settings(tmp_path, loss_type=loss_type, beta=0.3))

    live = KTOTrainer(models.load_model(policy), ref_model=models.load_model(chat_world.model), args=config(), **common)
    has_kl = loss_type == "kto"
    reference = {"ref_model": models.load_model(chat_world.model)} if has_kl else {}
    ours = StoredReferenceKTOTrainer(models.load_model(policy), config(), **common, **reference)
    names = ("prompt_ids", "completion_ids", *(("KL_completion_ids",) if has_kl else ()))
    assert (
        ours.train_dataset.select_columns(list(names)).to_list()
        == live.train_dataset.select_columns(list(names)).to_list()
    )
    assert ours.train_dataset["completion_ids"][:] == chat_world.unpaired.table("train")["completion_ids"].to_pylist()
    found = losses(ours)
    assert_equal_losses(found, losses(live))
    assert abs(found[0] - 0.5) > 0.01
    assert ("ref_KL_logps" in ours.train_dataset.column_names) == has_kl
    if has_kl:
        assert max(entry["kl"] for entry in ours.state.log_history if "kl" in entry) > 0.1


def test_dpo_takes_a_streamed_data_set_and_evaluates(chat_world: ChatWorld, policy: str, tmp_path: Path) -> None:
    from trl import DPOConfig

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    given = rows(chat_world.pairs, tmp_path)
    trainer = StoredReferenceDPOTrainer(
        models.load_model(policy),
        DPOConfig(**settings(tmp_path, max_steps=1, learning_rate=0.0)),
        given.to_iterable_dataset(),
        given,
        processing_class=tokenizer(policy),
    )
    assert len(losses(trainer)) == 1
    table = chat_world.pairs.table("train")
    scored = with_reference(table, policy)
    names = ("chosen", "rejected", "ref_chosen", "ref_rejected")
    sums = [torch.tensor(each[f"ref_{side}_logps"].to_pylist()) for each in (scored, table) for side in names[:2]]
    tokens = {f"{side}_tokens": torch.tensor(table[f"{side}_tokens"].to_pylist()) for side in names[:2]}
    expected = dpo(ReferencedPair(**dict(zip(names, sums, strict=True)), **tokens)).mean().item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, abs=1e-4)


def test_kto_reads_frozen_partners_and_their_stored_sums(chat_world: ChatWorld, policy: str, tmp_path: Path) -> None:
    """The partners are those that TRL would take, so that the losses are TRL's; no reference model is there."""
    from trl import KTOConfig, KTOTrainer

    from examples.with_trl.stored_reference import StoredReferenceKTOTrainer

    table = chat_world.unpaired.table("train")
    answers = table["completion_ids"].to_pylist()
    groups = [answers[start : start + 4] for start in range(0, len(answers), 4)]
    partners = [answer for group in groups for answer in (group[-1], *group[:-1])]
    mismatched = table.set_column(
        table.schema.get_field_index("completion_ids"), "completion_ids", pa.array(partners, TOKEN_IDS)
    )
    with_partners = table.append_column("partner_ids", mismatched["completion_ids"]).append_column(
        "ref_partner_logps", with_reference(mismatched, chat_world.model)["ref_completion_logps"]
    )
    version = publish(tmp_path / "data", {"train": with_partners}, chat_world.model, kind="unpaired")
    given = rows(version, tmp_path)
    common = {"train_dataset": given, "processing_class": tokenizer(policy)}
    # no arguments of the template are recorded here, so that TRL is handed the rows that have them
    theirs = {**common, "train_dataset": rows(chat_world.unpaired, tmp_path / "theirs")}
    live = KTOTrainer(
        models.load_model(policy),
        ref_model=models.load_model(chat_world.model),
        args=KTOConfig(**settings(tmp_path)),
        **theirs,
    )
    ours = StoredReferenceKTOTrainer(models.load_model(policy), KTOConfig(**settings(tmp_path)), **common)
    assert ours.ref_model is None
    assert ours.train_dataset["KL_completion_ids"][:] == partners
    assert_equal_losses(losses(ours), losses(live))
    short = StoredReferenceKTOTrainer(
        models.load_model(policy), KTOConfig(**settings(tmp_path, max_length=16)), **common
    )
    with pytest.raises(ValueError, match="max_length is 16"):
        short.train()


def test_kto_refuses_a_model_that_is_not_the_reference(chat_world: ChatWorld, policy: str, tmp_path: Path) -> None:
    from trl import KTOConfig

    from examples.with_trl.stored_reference import StoredReferenceKTOTrainer

    with pytest.raises(ValueError, match="the model is not the reference of these rows"):
        StoredReferenceKTOTrainer(
            models.load_model(policy),
            KTOConfig(**settings(tmp_path)),
            rows(chat_world.unpaired, tmp_path),
            processing_class=tokenizer(policy),
        )


def test_sft_trains_the_stored_tokens_as_they_are(chat_world: ChatWorld, tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    table = chat_world.completions.table("train")
    config = SFTConfig(**settings(tmp_path, per_device_train_batch_size=table.num_rows, max_steps=1))
    trainer = SFTTrainer(
        models.load_model(chat_world.model),
        config,
        train_dataset=rows(chat_world.completions, tmp_path),
        processing_class=tokenizer(chat_world.model),
    )
    ids = zip(table["prompt_ids"].to_pylist(), table["completion_ids"].to_pylist(), strict=True)
    assert trainer.train_dataset["input_ids"][:] == [prompt + answer for prompt, answer in ids]
    # the model is the reference, whose log-probs of the answers are stored
    mean = sum(table["ref_completion_logps"].to_pylist()) / sum(table["completion_tokens"].to_pylist())
    assert losses(trainer) == pytest.approx([-mean], abs=1e-4)


def test_what_the_stored_sums_are_not_of_is_refused(chat_world: ChatWorld, policy: str, tmp_path: Path) -> None:
    from trl import DPOConfig

    from examples.with_trl.stored_reference import StoredReferenceDPOTrainer

    given, read = rows(chat_world.pairs, tmp_path), tokenizer(policy)

    def trainer(data: Any = given, **more: Any) -> Any:
        return StoredReferenceDPOTrainer(
            models.load_model(policy), DPOConfig(**settings(tmp_path, **more)), data, processing_class=read
        )

    with pytest.raises(ValueError, match="and max_length is 16: its stored sums are of all of them"):
        trainer(max_length=16).train()
    with pytest.raises(ValueError, match="ld_alpha weighs the reference's tokens one by one"):
        trainer(ld_alpha=0.5)
    with pytest.raises(ValueError, match=r"the rows lack ref_chosen_logps, .*flows\.add_reference"):
        trainer(given.remove_columns(["ref_chosen_logps", "ref_rejected_logps"]))
