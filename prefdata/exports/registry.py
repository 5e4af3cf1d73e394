"""The targets. A new one is one file with a TARGET, and one line here."""

from prefdata.errors import UserError
from prefdata.exports import hf, jsonl, llama_factory, openai, trl
from prefdata.exports.target import Target
from prefdata.versions import Version

TARGETS: dict[str, Target] = {
    target.name: target for target in (trl.TARGET, llama_factory.TARGET, openai.TARGET, jsonl.TARGET, hf.TARGET)
}


def find(name: str, version: Version) -> Target:
    """The target of that name. UserError if there is none, or if it has no form for the version's kind."""
    if name not in TARGETS:
        raise UserError(f"there is no target {name!r}; there are: {', '.join(TARGETS)}")
    target = TARGETS[name]
    if version.kind not in target.kinds:
        others = ", ".join(each.name for each in TARGETS.values() if version.kind in each.kinds)
        raise UserError(
            f"{name} has no form for {version.kind}, which {version.name} holds; for them there are: {others}"
        )
    return target
