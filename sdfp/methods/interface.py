"""A method: what one row of the result tables changes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class NoSettings:
    """For methods that have nothing to set."""


def start_from_init(init_params, *, backbone, fit, settings):
    """No further pre-training: fine-tuning starts from theta_init."""
    del backbone, fit, settings
    return init_params


class Method(NamedTuple):
    """Every field defaults to plain fine-tuning."""

    pretrain: Callable = start_from_init
    """(init_params, *, backbone, fit, settings) -> {"encoder", "decoder"}: the parameters
    that fine-tuning starts from. `fit` is described in algorithm.py."""
    settings: type = NoSettings
    """Frozen dataclass that `config.method.<name>` is parsed into."""
