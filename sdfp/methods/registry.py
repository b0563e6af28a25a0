"""The rows of the result tables by name. A new method is one file and one line here."""

from sdfp.methods import (
    distill_only,
    finetune,
    further_pretrain,
    further_pretrain_x2,
    kd,
    label_smoothing,
    mars,
    prediction_matching,
    r3f,
    recadam,
    self_distillation,
    self_kd,
    tf_reg,
    weight_matching_l2,
    weight_matching_mars,
)
from sdfp.methods.interface import Method

METHODS: dict[str, Method] = {
    "finetune": finetune.METHOD,
    "recadam": recadam.METHOD,
    "mars": mars.METHOD,
    "r3f": r3f.METHOD,
    "further_pretrain": further_pretrain.METHOD,
    "self_distillation": self_distillation.METHOD,
    "distill_only": distill_only.METHOD,
    "further_pretrain_x2": further_pretrain_x2.METHOD,
    "prediction_matching": prediction_matching.METHOD,
    "weight_matching_l2": weight_matching_l2.METHOD,
    "weight_matching_mars": weight_matching_mars.METHOD,
    "label_smoothing": label_smoothing.METHOD,
    "tf_reg": tf_reg.METHOD,
    "kd": kd.METHOD,
    "self_kd": self_kd.METHOD,
}

PAPER = ("finetune", "recadam", "mars", "r3f", "further_pretrain", "self_distillation")
GROUPS: dict[str, tuple[str, ...]] = {
    "paper": PAPER,  # Tables 1 and 2
    "ablations": (  # Table 3
        *("finetune", "self_distillation", "distill_only", "further_pretrain"),
        *("further_pretrain_x2", "prediction_matching"),
        *("weight_matching_l2", "weight_matching_mars"),
    ),
    "labels": ("finetune", "label_smoothing", "tf_reg", "kd", "self_kd"),
    "all": tuple(METHODS),
}
"""What `--methods` of sdfp.table takes for several names."""
