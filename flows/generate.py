"""Publish a new version: samples of every prompt of an old one, from one or several models, with reference log-probs.

python -m flows.generate v1 --samples 8 --temperature 0.8 --top-p 0.95 --greedy
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.generate import NAME, Generate, Options

deployable = Deployable(NAME, Options, Generate, module="flows.generate", description=__doc__)
generate = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
