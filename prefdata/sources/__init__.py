"""From files and data sets to records: `read` finds the inputs and their format; each format is one file here.

reading = sources.read(["data/hh_helpful"])
for row, record in reading: ...        # record: a record (or several) of prefdata.records, or a SetAside
reading.sources                        # name, path, sha256, bytes, rows, format, license, origin of each input
"""

from prefdata.sources.formats import FORMATS
from prefdata.sources.reading import Reading, read

__all__ = ["FORMATS", "Reading", "read"]
