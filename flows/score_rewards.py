"""Publish a new version: completions with the scores of one or several scorers, of which selections read one, or pairs with
the verdicts of a judge.

python -m flows.score_rewards v2 --scorer reward_model:runs/rm --scorer lexicon
python -m flows.score_rewards v2 --scorer right=verifier:grading:check --scorer given --weights 1 0.2
python -m flows.score_rewards v5 --scorer judge --server http://127.0.0.1:8000 --calibrate-on humans
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.score_rewards import NAME, Options, job

deployable = Deployable(NAME, Options, job, module="flows.score_rewards", description=__doc__)
score_rewards = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
