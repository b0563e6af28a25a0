"""Row "Weight-Matching (MARS)" of Table 3: as weight_matching_l2, by the distance of MARS.

The distance is that of Gouk et al. 2021: of each layer's kernel the largest L1 norm of a unit's
change, summed over the layers. Biases, LayerNorm and embedding tables do not count.

Our choices are those of weight_matching_l2. Of each layer only the unit that is farthest away gets
a gradient, and a constant one however near it is: it does not fade as that of L2 does.
"""

from dataclasses import dataclass

from sdfp.methods import mars, weight_matching_l2
from sdfp.methods.interface import Method
from sdfp.settings import number


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`config.method.weight_matching_mars`."""

    weight: float = number(above=0)


def pretrain(init_params, *, backbone, fit, settings: Settings):
    return weight_matching_l2.matched_pretraining(
        "weight_matching_mars",
        mars.distance,
        init_params,
        backbone=backbone,
        fit=fit,
        weight=settings.weight,
    )


METHOD = Method(pretrain, Settings)
