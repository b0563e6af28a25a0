"""Writes vit_mae.npz, what PyTorch computes, for parity tests where torch is not installed.

Run `python tests/golden/make_golden.py` in an environment with torch and transformers; commit the
file. Arrays: `config` (JSON), `weight/NAME`, `image`, `noise`, the results, and
`gradient/NAME` of the masked loss.
"""

import json
from pathlib import Path

import numpy as np
import torch
import transformers

SIZES = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "layer_norm_eps": 0.01,  # large enough for a wrong one to be seen
}


def main():
    torch.manual_seed(0)
    config = transformers.ViTMAEConfig(
        **SIZES,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=16,
        norm_pix_loss=True,
        mask_ratio=0.75,
    )
    mae = transformers.ViTMAEForPreTraining(config).eval()
    classifier = transformers.ViTForImageClassification(
        transformers.ViTConfig(**SIZES, num_labels=5)
    ).eval()
    with torch.no_grad():
        for parameter in [*mae.parameters(), *classifier.classifier.parameters()]:
            parameter.requires_grad_(True)
            parameter.add_(0.2 * torch.randn_like(parameter))
    classifier.vit.load_state_dict(mae.vit.state_dict())

    image = torch.randn(3, 3, 16, 16)
    noise = torch.rand(3, 16)
    masked = mae(image, noise=noise)
    masked.loss.backward()
    weights = mae.state_dict() | {
        name: value for name, value in classifier.state_dict().items() if "classifier" in name
    }
    tensors = {
        "image": image,
        "noise": noise,
        "loss": masked.loss,
        "prediction": masked.logits,
        "features": classifier.vit(image).last_hidden_state,
        "logits": classifier(image).logits,
        **{f"weight/{name}": value for name, value in weights.items()},
        **{f"gradient/{name}": parameter.grad for name, parameter in mae.named_parameters()},
    }
    arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    arrays["config"] = np.array(json.dumps(config.to_dict(), sort_keys=True))
    path = Path(__file__).with_name("vit_mae.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {path.stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
