"""score-rewards: what scorers give a version's completions, or what a judge says of its pairs."""

from prefdata import scorers, versions
from prefdata.builds.judged_pairs import JudgedPairs
from prefdata.builds.options import check
from prefdata.builds.score_options import Options
from prefdata.builds.scored_completions import ScoredCompletions
from prefdata.builds.scored_rows import NAME, ScoredRows
from schemas import completions, pairs

__all__ = ["NAME", "Options", "job"]


def job(options: Options, root: str | None = None) -> ScoredRows:
    """The job for the source's kind of rows. UserError for scorers that there are not, or that read other rows."""
    check(options)
    called = scorers.parse_all(options.scorer)
    source = versions.find(options.source, root=root, kinds=(completions.KIND, pairs.KIND))
    scorers.check_kind(called, source.kind, source.name)
    make = ScoredCompletions if source.kind == completions.KIND else JudgedPairs
    return make(options, called, root)
