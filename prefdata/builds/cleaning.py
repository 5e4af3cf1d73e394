"""What a clean can be asked for, and the steps that do it, in the order in which they run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from prefdata import logical
from prefdata.builds.options import option
from prefdata.errors import UserError
from prefdata.sources.evaluations import Evaluation
from prefdata.steps import duplicates
from prefdata.steps.caps import Cap
from prefdata.steps.chain import Step
from prefdata.steps.decontaminate import RUN, SHARE, Decontaminate
from prefdata.steps.language import LANGUAGES, Language
from prefdata.steps.lengths import Bounds, Lengths
from prefdata.steps.noise_hints import NoiseHints
from prefdata.steps.private_data import FLAG, MASK, Flagged, Masked
from prefdata.steps.split import Split


@dataclass(frozen=True)
class Options:
    """What can be chosen. Steps are off unless asked for, and run in this order."""

    source: str = option("latest", "version to clean: vN, a tag, latest, a path or a URL")
    private_data: str | None = option(
        None,
        "say in a column which private data a row holds (e-mail, phone, key); mask: put [EMAIL] and such in its place and "
        "make the row's tokens again",
        choices=(FLAG, MASK),
    )
    min_prompt_tokens: int | None = option(None, "fewest tokens of a prompt", least=1)
    max_prompt_tokens: int | None = option(None, "most tokens of a prompt", least=1)
    min_answer_tokens: int | None = option(None, "fewest scored tokens of every answer", least=1)
    max_answer_tokens: int | None = option(None, "most scored tokens of every answer", least=1)
    languages: tuple[str, ...] = option(
        (), f"set aside rows that are in another language than these: {', '.join(LANGUAGES)}; what can't be told stays"
    )
    decontaminate: tuple[str, ...] = option((), "set aside prompts of these evaluations: files, globs or hub data sets")
    decontaminate_run: int = option(RUN, "words in a run that prompt and evaluation share", least=2)
    decontaminate_share: float = option(
        SHARE, "least share of an evaluation prompt's runs that a contaminated prompt holds", least=0
    )
    exact: str | None = option(
        None, "of prompts or whole rows that are equal when normal, keep one", choices=duplicates.COMPARED
    )
    near: str | None = option(
        None, "of prompts or whole rows that are nearly equal, keep one (MinHash)", choices=duplicates.COMPARED
    )
    near_threshold: float = option(
        0.8, "least similarity of near-duplicates, from 0 to 1: Jaccard index of runs of 3 words", least=0.1
    )
    max_per_prompt: int | None = option(None, "most rows of a prompt in a split, drawn", least=1)
    max_per_source: int | None = option(None, "most rows of a source in a split, drawn", least=1)
    test_fraction: float | None = option(
        None, "hold out this share of the groups of near-duplicate prompts, beside what is held out already", least=0
    )
    split_like: str | None = option(None, "version whose prompts stay in the split that they have there")
    noise_hints: bool = option(False, "say in a column why a label may be wrong: both orders, scores that disagree ...")
    seed: int = option(0, "seed of all draws")


def steps(
    options: Options, kind: str, exams: Sequence[Evaluation] = (), earlier: Mapping[str, str] | None = None
) -> list[Step]:
    """The steps that are asked for, in order. exams: what to decontaminate against; earlier: the split of each
    prompt that has one already."""
    sides, seed = logical.SIDES[kind], options.seed
    prompt = Bounds(options.min_prompt_tokens, options.max_prompt_tokens)
    answer = Bounds(options.min_answer_tokens, options.max_answer_tokens)
    found: list[Step] = []
    if options.private_data is not None:
        found.append(Masked() if options.private_data == MASK else Flagged())
    if prompt or answer:
        found.append(Lengths(prompt, answer, sides))
    if options.languages:
        found.append(Language(options.languages))
    if exams:
        share = options.decontaminate_share
        found.append(Decontaminate(exams, run=options.decontaminate_run, share=share))
    if options.exact is not None:
        found.append(duplicates.Exact(options.exact))
    if options.near is not None:
        found.append(duplicates.Near(options.near, options.near_threshold, sides))
    for of, most in (("prompt_id", options.max_per_prompt), ("source", options.max_per_source)):
        if most is not None:
            found.append(Cap(of, most, seed=seed))
    if options.test_fraction is not None or earlier is not None:
        found.append(Split(options.test_fraction or 0.0, options.near_threshold, seed=seed, earlier=earlier))
    if options.noise_hints:
        found.append(NoiseHints(kind))
    return found


def check_values(options: Options) -> None:
    """UserError for what a step could do nothing sensible with."""
    unknown = [language for language in options.languages if language not in LANGUAGES]
    if unknown:
        raise UserError(f"languages: {', '.join(unknown)} can't be told; these can: {', '.join(LANGUAGES)}")
    for name in ("near_threshold", "decontaminate_share", "test_fraction"):
        share = getattr(options, name)
        if share is not None and share > 1:
            raise UserError(f"{name} is {share}; it is a share, and must be at most 1")
    for part in ("prompt", "answer"):
        least, most = (getattr(options, f"{bound}_{part}_tokens") for bound in ("min", "max"))
        if least is not None and most is not None and least > most:
            raise UserError(f"min_{part}_tokens is {least} and max_{part}_tokens is {most}: nothing is between them")
