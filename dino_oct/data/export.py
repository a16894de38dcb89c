"""Export of volumes: one PNG a B-scan and a table, without names, numbers or dates of patients.

python dino_oct/data/export.py VOLUME… --out DIR
"""

from dataclasses import dataclass
from typing import Annotated

import tyro

from dino_oct.cli import run_command
from dino_oct.limits import Items, Name, NewPath


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write the B-scans of volumes as pictures, with a table that names patients by pseudonyms."""

    volumes: tyro.conf.Positional[Annotated[tuple[Name, ...], Items(1)]]
    """Files of volumes (.vol, HEYEX .xml, .e2e, DICOM, .fda, .img and others), and folders of such files."""
    out: NewPath
    """Folder to write: new or empty."""
    cache_dir: str = ""
    """Folder with the key of the pseudonyms (identity.key); empty: $DINO_OCT_CACHE, else $XDG_CACHE_HOME/dino_oct or
    ~/.cache/dino_oct."""


def main(options: Options) -> None:
    """Write the folder and say what it holds."""
    from dino_oct.data.identity import identity_key
    from dino_oct.data.index import DatasetConfig, cache_root
    from dino_oct.data.volumes.exporting import export_volumes

    key = identity_key(cache_root(DatasetConfig(cache_dir=options.cache_dir)))
    print(export_volumes(options.volumes, options.out, key))


if __name__ == "__main__":
    run_command(main, Options)
