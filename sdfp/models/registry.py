"""The model families by the name that `config.model.name` gives."""

from sdfp.models import interface, roberta, roberta_export, vit_export, vit_mae

BACKBONES: dict[str, interface.Family] = {
    "vit_mae": interface.Family(
        settings=vit_mae.Settings,
        make=vit_mae.make,
        read_config=vit_mae.read_config,
        check_input=vit_mae.check_input,
        model_types=("vit_mae", "vit"),
        export=vit_export.export,
        describe=vit_export.describe,
    ),
    "roberta": interface.Family(
        settings=roberta.Settings,
        make=roberta.make,
        read_config=roberta.read_config,
        check_input=roberta_export.check_input,
        model_types=("roberta",),
        export=roberta_export.export,
        describe=roberta_export.describe,
    ),
}
