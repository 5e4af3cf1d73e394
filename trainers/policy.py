"""The model that is trained: read, given its adapter and dropout, and saved as transformers loads it."""

from typing import TYPE_CHECKING, Any

from transformers import GenerationConfig

from prefdata import models
from prefdata.errors import UserError
from prefdata.scorers import reward_model
from prefdata.tokens import Renderer
from trainers import lora
from trainers.loop import Loop, set_dropout
from trainers.processes import Say
from trainers.runs import Run, saving

if TYPE_CHECKING:
    from trainers.plan import Plan


def load(plan: "Plan", say: Say) -> Any:
    """The policy, with its adapter if it is to have one."""
    config, options = plan.config, plan.options
    model: Any
    if plan.loss.head == "score":
        model = reward_model.load(plan.model, trust_remote_code=options.trust_remote_code, fresh_head_seed=options.seed)
    else:
        model = models.load_model(plan.model, dtype="float32", trust_remote_code=options.trust_remote_code)
    if options.gradient_checkpointing and not getattr(model, "supports_gradient_checkpointing", False):
        raise UserError(f"--gradient-checkpointing: {plan.model} ({type(model).__name__}) does not offer it.")
    _make_savable(model)
    _end_as_rows_do(model, plan.renderer)
    if config["lora"]:
        model = lora.attach(
            model, config["lora"], policy=config["policy"], seed=options.seed, scalar=plan.loss.head == "score"
        )
        trained, every = model.get_nb_trainable_parameters()
        say(
            f"LoRA of rank {config['lora']['rank']}, alpha {config['lora']['alpha']:g}: {trained:,} weights are trained,"
            f" {every - trained:,} stay as they are"
        )
    if options.dropout:
        set_dropout(model, options.dropout)
    return model


def tokenizer(renderer: Renderer) -> Any:
    """The tokenizer with the template that the rows were made with, so that the saved model is used as it was trained."""
    found = renderer.tokenizer
    found.chat_template = None if renderer.plain else renderer.template.source
    return found


def save(loop: Loop, plan: "Plan", run: Run) -> None:
    """The trained model in the run folder, as transformers loads it: whole, or as an adapter of the model it is for."""
    model: Any = loop.accelerator.unwrap_model(loop.model)
    model.config.use_cache = True
    _end_as_rows_do(model, plan.renderer)  # Trainer has put the tokenizer's own end there
    with saving(run.folder):
        if plan.config["merge"]:
            lora.save(model, run.folder / lora.ADAPTER)
            loop.model = model.merge_and_unload()
        loop.save_model(str(run.folder))


def _end_as_rows_do(model: Any, renderer: Renderer) -> None:
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = list(renderer.end_ids)


def _make_savable(model: Any) -> None:
    """Sampling defaults that transformers reads with a warning and refuses to write, as some hub models have them.

    A temperature without do_sample means that sampling was intended; what is wrong beyond that is left out.
    """
    settings = getattr(model, "generation_config", None)
    if settings is None or _writable(settings):
        return
    settings.do_sample = True
    if not _writable(settings):
        model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]


def _writable(settings: Any) -> bool:
    try:
        settings.validate(strict=True)
    except ValueError:
        return False
    return True
