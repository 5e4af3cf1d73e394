"""Publish a new version: of many scored draws of each prompt those that a rule accepts, as pairs or as completions.

python -m flows.build_rejection_samples v5 --rule statistical --accept 8 --beta 0.5
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.rejection import NAME, Options, job

deployable = Deployable(NAME, Options, job, module="flows.build_rejection_samples", description=__doc__)
build_rejection_samples = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
