"""Publish a new version: scored samples against the greedy completion of their prompt, as advantages or as pairs.

python -m flows.build_greedy_baselines v5 --output pairs
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.greedy_baselines import NAME, Options, job

deployable = Deployable(NAME, Options, job, module="flows.build_greedy_baselines", description=__doc__)
build_greedy_baselines = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
