"""A trained model as a folder that transformers (and timm) load:

    python -m sdfp.export --workdir runs/digits --stage finetune/self_distillation/seed_0 --out DIR

A masked stage becomes a ViTMAEForPreTraining or RobertaForMaskedLM, a fine-tuned one a
ViTForImageClassification or RobertaForSequenceClassification with label names; image processor or
tokenizer are with it. DIR/timm is the encoder (and head) of a ViT for timm. `config.init.weights`
and `sdfp.predict --model` read the folder too.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from sdfp import cli, hub_folder, report, trained


def export(workdir: Path, stage: str, out: Path) -> None:
    """Writes the folder.

    Raises:
        UserError: no such stage, or `out` is not empty or cannot be written.
    """
    model = trained.open_stage(workdir, stage)
    files = model.family.export(model.params, model.card)
    hub_folder.write_folder(out, files)
    kind = files["config.json"]["architectures"][0]
    report.say(f"{out}: {stage} as {kind}; how to load it: {out / 'README.md'}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit code."""
    parser = cli.parser("sdfp.export", __doc__)
    parser.add_argument("--workdir", type=cli.path, required=True, help="of the run")
    parser.add_argument("--stage", required=True, help="as in results.json, e.g. further_pretrain")
    parser.add_argument("--out", type=cli.path, required=True, help="the new folder")
    given = parser.parse_args(argv)
    return cli.exit_code(lambda: export(given.workdir, given.stage, given.out))


if __name__ == "__main__":
    sys.exit(main())
