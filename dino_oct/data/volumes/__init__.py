"""Volumes as clinics have them: formats of devices, DICOM, stacks of pages and of numbers, read to grey B-scans.

``holds_volume`` finds them, ``group_series`` joins the files of one, ``read_volumes`` reads them, ``owned_files`` names
what belongs to them. Libraries of the ``clinic`` extra are imported when a file needs them. docs/data.md lists the
formats and what each was tested with. Untested with files of the device: E2E, Topcon, Cirrus, Bioptigen, Optovue.
"""

from dino_oct.data.volumes.dicom import beside, group_series
from dino_oct.data.volumes.reading import (
    CHECKED_SUFFIXES,
    VOLUME_SUFFIXES,
    holds_volume,
    is_volume,
    owned_files,
    read_volumes,
)
from dino_oct.data.volumes.volume import Volume

__all__ = [
    "CHECKED_SUFFIXES",
    "VOLUME_SUFFIXES",
    "Volume",
    "beside",
    "group_series",
    "holds_volume",
    "is_volume",
    "owned_files",
    "read_volumes",
]
