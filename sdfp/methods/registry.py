"""The rows of the result tables by name. A new method is one file and one line here."""

from sdfp.methods import finetune, further_pretrain, self_distillation
from sdfp.methods.interface import Method

METHODS: dict[str, Method] = {
    "finetune": finetune.METHOD,
    "further_pretrain": further_pretrain.METHOD,
    "self_distillation": self_distillation.METHOD,
}
