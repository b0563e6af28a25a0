"""Compiled programs that are kept from one run to the next (`config.run.compilation_cache`)."""

import os
from pathlib import Path

import jax

from sdfp.types import UserError


def keep(folder: str) -> None:
    """Keeps compiled programs in a folder, for later runs; "" keeps none.

    Raises:
        UserError: the folder cannot be made, or others can write to it: what lies there is run.
    """
    if not folder:
        return
    try:
        path = Path(folder).expanduser()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
    except RuntimeError as error:
        raise UserError(f"config.run.compilation_cache={folder}: no such home folder") from error
    except FileExistsError as error:
        raise UserError(f"config.run.compilation_cache={folder}: a file; name a folder") from error
    except OSError as error:
        raise UserError(f"config.run.compilation_cache={folder}: {error.strerror}") from error
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UserError(
            f"config.run.compilation_cache={folder}: others can write to it, and what lies there "
            "is run; name a new folder"
        )
    if not os.access(path, os.W_OK | os.X_OK):
        raise UserError(f"config.run.compilation_cache={folder}: it cannot be written")
    jax.config.update("jax_compilation_cache_dir", str(path))
