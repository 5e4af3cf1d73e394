"""Publish a new version: pairs from the scored completions of an old one, by a rule; or its pairs that are clear enough.

python -m flows.build_paired v5 --rule max_random_lower --min-margin 0.5
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.paired import NAME, Options, job

deployable = Deployable(NAME, Options, job, module="flows.build_paired", description=__doc__)
build_paired = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
