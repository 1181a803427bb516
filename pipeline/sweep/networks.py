"""The networks that are trained: small, in plain torch, with the names that libraries give their tensors.

Letters: B examples of a batch, T tokens, C width, H heads, D width of a head.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.sweep.data import DIGITS, SIDE, VOCABULARY
from pipeline.sweep.settings import HEAD_WIDTH, Settings

_PATCH = 2
"""Pixels of a patch's side, which is a token of the vision transformer."""
_DEVIATION = 0.02
"""Of initial weights of transformers (GPT-2)."""


def network_of(settings: Settings) -> nn.Module:
    """Return a network with the initial weights of its seed, in the main memory."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        width, depth = settings.width, settings.depth
        match settings.network:
            case "mlp":
                return Perceptron(width, depth)
            case "cnn":
                return Convolutional(width, depth)
            case "vit":
                return VisionTransformer(width, depth)
            case _:
                hidden = 8 * width // 3  # as many weights as an MLP without gates of 4 C
                network = Decoder(VOCABULARY, width, depth, width // HEAD_WIDTH, hidden)
                initialise(network, depth, torch.Generator().manual_seed(settings.seed))
                return network


def initialise(network: nn.Module, layers: int, generator: torch.Generator) -> None:
    """Draw the matrices of a decoder: normal with 0.02, and less for what is added to the residual
    stream (as in GPT-2)."""
    with torch.no_grad():
        for name, weights in network.named_parameters():
            if weights.dim() == 2:
                added = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = _DEVIATION / math.sqrt(2 * layers) if added else _DEVIATION
                weights.copy_(scale * torch.randn(weights.shape, generator=generator))


class Perceptron(nn.Module):
    """Hidden layers of rectified units."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        sizes = [SIDE * SIDE, *[width] * depth]
        self.layers = nn.ModuleList(map(nn.Linear, sizes, sizes[1:]))
        self.head = nn.Linear(width, DIGITS)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 10) logits of (B, 1, 8, 8) images."""
        states = images.flatten(1)
        for layer in self.layers:
            states = functional.relu(layer(states))
        return self.head(states)


class Convolutional(nn.Module):
    """Residual blocks with batch norm (He 2016), of which the second half sees half the resolution with
    twice the channels."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        full = (depth + 1) // 2
        self.conv1 = _convolution(1, width)
        self.bn1 = nn.BatchNorm2d(width)
        channels = [width, *[width] * full, *[2 * width] * (depth - full)]
        self.layers = nn.ModuleList(map(_ResidualBlock, channels, channels[1:]))
        self.fc = nn.Linear(channels[-1], DIGITS)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 10) logits of (B, 1, 8, 8) images."""
        states = functional.relu(self.bn1(self.conv1(images)))
        for layer in self.layers:
            states = layer(states)
        return self.fc(states.mean((2, 3)))


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int, wider: int) -> None:
        super().__init__()
        stride = 1 if wider == channels else 2
        self.conv1 = _convolution(channels, wider, stride)
        self.bn1 = nn.BatchNorm2d(wider)
        self.conv2 = _convolution(wider, wider)
        self.bn2 = nn.BatchNorm2d(wider)
        self.downsample = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(
                nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )
        )

    def forward(self, states: Tensor) -> Tensor:
        inner = functional.relu(self.bn1(self.conv1(states)))
        return functional.relu(self.downsample(states) + self.bn2(self.conv2(inner)))


def _convolution(channels: int, wider: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False)


class VisionTransformer(nn.Module):
    """Pre-norm transformer over patches of 2 × 2 pixels, whose mean is classified."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        patches = (SIDE // _PATCH) ** 2
        self.patch_embed = nn.Linear(_PATCH * _PATCH, width)
        self.position_embeddings = nn.Embedding(patches, width)
        self.layers = nn.ModuleList(_VisionLayer(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, DIGITS)
        nn.init.normal_(self.position_embeddings.weight, std=_DEVIATION)

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, 10) logits of (B, 1, 8, 8) images."""
        patches = functional.unfold(images, _PATCH, stride=_PATCH).transpose(1, 2)
        states = self.patch_embed(patches) + self.position_embeddings.weight
        for layer in self.layers:
            states = layer(states)
        return self.head(self.norm(states).mean(1))


class _VisionLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_layernorm = nn.LayerNorm(width)
        self.self_attn = _Attention(width, width // HEAD_WIDTH, causal=False)
        self.post_attention_layernorm = nn.LayerNorm(width)
        self.mlp = _Mlp(width, 2 * width)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states))
        return states + self.mlp(self.post_attention_layernorm(states))


class Decoder(nn.Module):
    """Language model of the Llama family."""

    def __init__(self, vocabulary: int, width: int, layers: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(vocabulary, width),
                "layers": nn.ModuleList(_DecoderLayer(width, heads, hidden) for _ in range(layers)),
                "norm": nn.RMSNorm(width, eps=1e-5),
            }
        )
        self.lm_head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return (B, T, vocabulary) logits of (B, T) tokens."""
        states = self.model["embed_tokens"](tokens)
        for layer in cast(nn.ModuleList, self.model["layers"]):
            states = layer(states)
        return self.lm_head(self.model["norm"](states))


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.self_attn = _Attention(width, heads, causal=True)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-5)
        self.mlp = _GatedMlp(width, hidden)

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.self_attn(self.input_layernorm(states))
        return states + self.mlp(self.post_attention_layernorm(states))


class _Attention(nn.Module):
    """Of tokens to all others; or, causal, to those before, by rotary positions."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            nn.Linear(width, width, bias=False) for _ in range(4)
        )

    def forward(self, states: Tensor) -> Tensor:
        def split(projected: Tensor) -> Tensor:  # (B, T, C) → (B, H, T, D)
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = (split(project(states)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.causal:
            q, k = _rotated(q), _rotated(k)
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, states: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(states)))


class _GatedMlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(states)) * self.up_proj(states))


def _rotated(heads: Tensor) -> Tensor:
    """Return (B, H, T, D) with pairs of coordinates turned by their position (RoPE, Su 2021)."""
    length, half = heads.shape[-2], heads.shape[-1] // 2
    frequencies = 10_000.0 ** (-torch.arange(half, device=heads.device) / half)
    angles = torch.arange(length, device=heads.device)[:, None] * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = heads[..., :half], heads[..., half:]
    return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)
