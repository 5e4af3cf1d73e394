"""Publish a new version from files, folders, globs, URLs or a hub data set.

python -m flows.ingest pairs.jsonl --model Qwen/Qwen2.5-1.5B-Instruct
"""

import sys

from flows.deployable import Deployable
from prefdata.builds.ingest import NAME, Ingest, Options

deployable = Deployable(NAME, Options, Ingest, module="flows.ingest", description=__doc__)
ingest = deployable.flow()

if __name__ == "__main__":
    sys.exit(deployable.main())
