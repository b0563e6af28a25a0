"""The model families by the name that `config.model.name` gives."""

from sdfp.models import interface, vit_mae

BACKBONES: dict[str, interface.Family] = {
    "vit_mae": interface.Family(vit_mae.Settings, vit_mae.make, vit_mae.read_config),
}
