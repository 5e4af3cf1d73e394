"""Publish a new version: for every good answer of an old one, negatives with a segment written anew by a model.

python -m flows.build_sapo_negatives v1 --mode suffix
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.sapo_negatives import NAME, BuildSapoNegatives, Options

deployable = Deployable(NAME, Options, BuildSapoNegatives, module="flows.build_sapo_negatives", description=__doc__)
build_sapo_negatives = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
