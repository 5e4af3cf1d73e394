"""Publish a new version: an old one without the rows that the named steps set aside. Every step is off until asked for.

python -m flows.clean v1 --near prompts
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.clean import NAME, Options, job

deployable = Deployable(NAME, Options, job, module="flows.clean", description=__doc__)
clean = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
