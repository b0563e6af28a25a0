"""The three stages in PyTorch, written from the paper's facts alone: a second opinion.

`transformers` has the model; losses, optimisers and schedules are spelled out here. A stage
takes batches of torch tensors and returns its losses, one dict per step.
"""

import contextlib
import copy

import torch
from transformers import ViTMAEConfig, ViTMAEForPreTraining


def vit_mae(settings) -> ViTMAEForPreTraining:
    """Random weights (seed 0) for the sizes in a `vit_mae.Settings`."""
    torch.manual_seed(0)
    config = ViTMAEConfig(
        image_size=settings.image_size,
        patch_size=settings.patch_size,
        num_channels=settings.channels,
        hidden_size=settings.dim,
        num_hidden_layers=settings.depth,
        num_attention_heads=settings.heads,
        intermediate_size=settings.mlp_dim,
        decoder_hidden_size=settings.decoder_dim,
        decoder_num_hidden_layers=settings.decoder_depth,
        decoder_num_attention_heads=settings.decoder_heads,
        decoder_intermediate_size=settings.decoder_mlp_dim,
        layer_norm_eps=settings.layer_norm_eps,
        mask_ratio=settings.mask_ratio,
        norm_pix_loss=settings.normalize_targets,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTMAEForPreTraining(config)


def weights(model) -> dict:
    return {name: tensor.detach().numpy().copy() for name, tensor in model.state_dict().items()}


@contextlib.contextmanager
def unmasked(model):
    """ViTMAE of transformers masks in evaluation too; ratio 0 keeps (and shuffles) all."""
    ratio, model.config.mask_ratio = model.config.mask_ratio, 0.0
    yield
    model.config.mask_ratio = ratio


def cls(model, images):
    """[CLS] after the final LayerNorm, of the whole image."""
    with unmasked(model):
        return model.vit(images).last_hidden_state[:, 0]


def further_pretrain(model, batches, learning_rate):
    """Trains `model` by masked auto-encoding; batches are (images, noise)."""
    optimizer, scheduler = _pretraining_optimizer(model, learning_rate, len(batches))
    history = []
    for images, noise in batches:
        loss = model(images, noise=noise).loss
        _update(loss, optimizer, scheduler)
        history.append({"masked": loss.item(), "loss": loss.item()})
    return history


def self_distill(model, teacher, batches, learning_rate):
    """Trains `model` by masked auto-encoding and towards the teacher's [CLS] vector."""
    teacher = copy.deepcopy(teacher).eval()
    optimizer, scheduler = _pretraining_optimizer(model, learning_rate, len(batches))
    history = []
    for images, noise in batches:
        masked = model(images, noise=noise).loss
        with torch.no_grad():
            target = cls(teacher, images)
        distill = (cls(model, images) - target).pow(2).sum() / len(images)
        loss = masked + distill
        _update(loss, optimizer, scheduler)
        history.append({"masked": masked.item(), "distill": distill.item(), "loss": loss.item()})
    return history


def finetune(model, head, batches, learning_rate, warmup):
    """Trains the encoder of `model` and the linear `head`; batches are (images, labels)."""
    named = {f"head.{name}": p for name, p in head.named_parameters()}
    named |= dict(model.vit.named_parameters())
    for parameter in named.values():
        parameter.requires_grad_(True)  # transformers freezes the position embeddings
    plain = [n for n in named if n.endswith(("bias", "position_embeddings", "cls_token"))]
    groups = [
        {"params": [p for n, p in named.items() if n not in plain], "weight_decay": 0.01},
        {"params": [named[n] for n in plain], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)
    steps = len(batches)
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: step / warmup if step < warmup else (steps - step) / (steps - warmup),
    )
    history = []
    for images, labels in batches:
        loss = torch.nn.functional.cross_entropy(head(cls(model, images)), labels)
        _update(loss, optimizer, scheduler, clip=(named.values(), 1.0))
        history.append({"cross_entropy": loss.item(), "loss": loss.item()})
    return history


def _pretraining_optimizer(model, learning_rate, steps):
    trained = [
        parameter
        for name, parameter in model.named_parameters()
        if not name.endswith(("position_embeddings", "decoder_pos_embed"))
    ]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.01},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), eps=1e-8)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    return optimizer, scheduler


def _update(loss, optimizer, scheduler, clip=None):
    optimizer.zero_grad()
    loss.backward()
    if clip:
        torch.nn.utils.clip_grad_norm_(*clip)
    optimizer.step()
    scheduler.step()
