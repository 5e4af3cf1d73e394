"""What generates, where, and how: the options that every build which generates has, each written once."""

from dataclasses import dataclass
from typing import Any

from prefdata import engines
from prefdata.builds.options import option
from prefdata.models import DTYPES


@dataclass(frozen=True)
class EngineOptions:
    """What can be chosen of the engine and of the models."""

    engine: str = option("transformers", "what generates", choices=engines.OFFERED)
    tensor_parallel_size: int = option(1, "devices that share one copy of the generating model (vllm)", least=1)
    data_parallel_size: int = option(1, "copies of the generating model (vllm)", least=1)
    server: tuple[str, ...] = option((), "URL of a vLLM server that generates (openai); given several times, all share")
    served_model: str | None = option(None, "name that the servers serve the model by (default: the model's own)")
    api_key_env: str | None = option(None, "environment variable that holds the servers' key")
    concurrency: int = option(32, "requests that a server has at once (openai)", least=1)
    dtype: str = option("float32", "precision of the models' weights", choices=DTYPES)
    trust_remote_code: bool = option(False, "run Python code that comes with a model")


# how work is spread out is no part of what was asked for
LAYOUT = ("tensor_parallel_size", "data_parallel_size", "server", "served_model", "api_key_env", "concurrency")


def loading(options: EngineOptions) -> dict[str, Any]:
    """What `engines.load` is given beside the model. UserError for what the engine does not take."""
    return {
        "dtype": options.dtype,
        "trust_remote_code": options.trust_remote_code,
        **engines.parallel(
            options.engine,
            tensor_parallel_size=options.tensor_parallel_size,
            data_parallel_size=options.data_parallel_size,
        ),
        **engines.remote(
            options.engine,
            server=options.server,
            served_model=options.served_model,
            api_key_env=options.api_key_env,
            concurrency=options.concurrency,
        ),
    }
