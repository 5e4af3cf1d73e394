"""Publish a new version: desirable and undesirable answers from pairs, scored completions or judged rows, each with a
frozen partner for KTO.

python -m flows.build_unpaired v5 --rule threshold --threshold 0.5
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.unpaired import NAME, BuildUnpaired, Options

deployable = Deployable(NAME, Options, BuildUnpaired, module="flows.build_unpaired", description=__doc__)
build_unpaired = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
