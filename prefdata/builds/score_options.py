"""What can be chosen of score-rewards."""

from dataclasses import dataclass

from prefdata.builds.options import option
from prefdata.models import DTYPES

# options that change no result
LAYOUT = ("unit_rows", "server", "api_key_env", "concurrency")


@dataclass(frozen=True)
class Options:
    """What can be chosen."""

    source: str = option("latest", "version with completions, or pairs to judge: vN, a tag, latest, a path or a URL")
    scorer: tuple[str, ...] = option(
        (),
        "what scores, as [NAME=]KIND[:WHAT]; several stand side by side: reward_model:FOLDER (or a hub name),"
        " verifier:MODULE:FUNCTION (or an entry point), lexicon (VADER sentiment), given (the scores that are there),"
        " given:NAME (one of them); of pairs, judge or judge:MODEL, which is asked at --server. NAME is what its scores"
        " are called (default: the last part)",
    )
    weights: tuple[float, ...] = option(
        (), "a weight for each scorer: `score` is their weighted mean, called mean (default: no mean)"
    )
    score: str | None = option(
        None, "name of the scorer whose scores selections read (default: the mean, else the first scorer)"
    )
    server: tuple[str, ...] = option(
        (), "URL of an OpenAI-compatible server that judges; given several times, all share"
    )
    api_key_env: str | None = option(None, "environment variable that holds the servers' key")
    concurrency: int = option(32, "requests that a server has at once", least=1)
    judge_tokens: int = option(1024, "most tokens of a judge's answer", least=1)
    calibrate_on: str | None = option(
        None,
        "version of pairs that people judged: the judge judges them too, and its probabilities are fitted to theirs",
    )
    reference: str | None = option(
        None, "model whose log-probs are stored (default: those that are there stay; else the source's own model)"
    )
    with_reference: bool = option(True, "add the reference's log-probs where there are none")
    dtype: str = option("float32", "precision of the models' weights", choices=DTYPES)
    unit_rows: int = option(1024, "rows per unit of work", least=1)
    trust_remote_code: bool = option(False, "run Python code that comes with a model")
