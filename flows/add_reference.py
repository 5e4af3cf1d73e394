"""Publish a new version: an old one plus the log-probs of a reference model.

python -m flows.add_reference v1 --model Qwen/Qwen2.5-1.5B-Instruct
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.add_reference import NAME, AddReference, Options

deployable = Deployable(NAME, Options, AddReference, module="flows.add_reference", description=__doc__)
add_reference = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
