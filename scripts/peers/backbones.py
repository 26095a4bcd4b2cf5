"""The backbones of the sweep and their head in PyTorch. Tensors have the names of candlepower's own.

Each `nn.Dropout` stands where the sweep has dropout. It is off unless its rate is set.
"""

import torch
from torch import nn


class Attention(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))
        self.heads = heads

    def forward(self, x, over):
        module = nn.MultiheadAttention(x.shape[-1], self.heads, batch_first=True)
        del module.in_proj_weight, module.in_proj_bias, module.out_proj.weight, module.out_proj.bias
        module.in_proj_weight = torch.cat([self.query.weight, self.key.weight, self.value.weight])
        module.in_proj_bias = torch.cat([self.query.bias, self.key.bias, self.value.bias])
        module.out_proj.weight, module.out_proj.bias = self.out.weight, self.out.bias
        return module(x, over, over, need_weights=False)[0]


class RotaryAttention(nn.Module):
    """One q, k, v projection without bias, and RoPE: cosines in halves, rotation by interleaved pairs."""

    def __init__(self, dim, heads):
        super().__init__()
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)
        self.heads = heads

    def forward(self, x):
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        width = query.shape[-1]
        frequencies = 10000.0 ** (-torch.arange(0, width, 2).float() / width)
        angles = torch.outer(torch.arange(x.shape[1]).float(), frequencies)
        angles = torch.cat([angles, angles], -1)

        def rotate(heads):
            turned = torch.stack([-heads[..., 1::2], heads[..., 0::2]], -1).flatten(-2)
            return heads * angles.cos() + turned * angles.sin()

        mixed = nn.functional.scaled_dot_product_attention(rotate(query), rotate(key), value)
        return self.out(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, dim, inner):
        super().__init__()
        self.up, self.down = nn.Linear(dim, inner), nn.Linear(inner, dim)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.down(self.dropout(nn.functional.gelu(self.up(x))))


class CausalDepthwise(nn.Module):
    def __init__(self, width, taps):
        super().__init__()
        made = nn.Conv1d(width, width, taps, groups=width)
        self.weight, self.bias = made.weight, made.bias

    def forward(self, x):
        padded = nn.functional.pad(x.transpose(1, 2), (self.weight.shape[-1] - 1, 0))
        return nn.functional.conv1d(padded, self.weight, self.bias, groups=len(self.bias)).transpose(1, 2)


class Convolution(nn.Module):
    def __init__(self, dim, taps, dilation):
        super().__init__()
        self.depthwise = nn.Conv1d(dim, dim, taps, dilation=dilation, padding="same", groups=dim)
        self.pointwise = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.pointwise(self.dropout(nn.functional.gelu(self.depthwise(x.transpose(1, 2)).transpose(1, 2))))


class Embedding(nn.Module):
    def __init__(self, features, dim, positions):
        super().__init__()
        self.linear = nn.Linear(features, dim)
        self.positions = nn.Parameter(torch.randn(positions, dim))
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        return self.dropout(self.linear(x) + self.positions[: x.shape[1]])


class HybridBlock(nn.Module):
    def __init__(self, s, number):
        super().__init__()
        self.attention = RotaryAttention(s["dim"], s["heads"])
        self.attention_norm, self.feed_forward_norm, self.convolution_norm = (nn.LayerNorm(s["dim"]) for _ in range(3))
        self.feed_forward = FeedForward(s["dim"], s["ff_mult"] * s["dim"])
        self.convolution = Convolution(s["dim"], s["conv_kernel"], s["dilations"][number % len(s["dilations"])])

    def forward(self, x):
        x = self.attention_norm(x + self.attention(x))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return self.convolution_norm(x + self.convolution(x))


class Stack(nn.Module):
    """An embedding, blocks and a norm."""

    def __init__(self, s, blocks):
        super().__init__()
        self.embedding = Embedding(s["features"], s["dim"], s["max_seq_len"])
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(s["dim"])

    def forward(self, x):
        x = self.embedding(x)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class HybridTransformer(Stack):
    def __init__(self, s):
        # A generator, so that the weights of the embedding are drawn first.
        super().__init__(s, (HybridBlock(s, number) for number in range(s["depth"])))


class OmniBlock(nn.Module):
    def __init__(self, s, number):
        super().__init__()
        dim = s["dim"]
        self.attention = Attention(dim, s["heads"])
        self.feed_forward = FeedForward(dim, 2 * s["ff_mult"] * dim)
        self.mixer_in, self.mixer_out = nn.Linear(dim, 2 * s["state_dim"]), nn.Linear(s["state_dim"], dim)
        self.mixer_conv = CausalDepthwise(s["state_dim"], s["state_kernel"])
        self.dropout = nn.Dropout(0.0)
        self.convolution = Convolution(dim, s["conv_kernel"], s["dilations"][number % len(s["dilations"])])
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer_norm, self.convolution_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.crosses = (number + 1) % s["cross_every"] == 0
        if self.crosses:
            self.cross, self.cross_norm = Attention(dim, s["heads"]), nn.LayerNorm(dim)

    def forward(self, x, coarse):
        x = self.attention_norm(x + self.attention(x, x))
        x = x + self.feed_forward(self.feed_forward_norm(x))
        u, v = self.mixer_in(x).chunk(2, -1)
        x = self.mixer_norm(x + self.dropout(self.mixer_out(self.mixer_conv(u * torch.sigmoid(v)))))
        x = self.convolution_norm(x + self.convolution(x))
        return self.cross_norm(x + self.cross(x, coarse)) if self.crosses else x


class Coarse(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.pool = nn.AvgPool1d(s["coarse_factor"], ceil_mode=True, count_include_pad=False)
        self.positions = nn.Parameter(torch.randn(s["max_seq_len"] // s["coarse_factor"] + 2, s["dim"]))
        self.norm, self.linear = nn.LayerNorm(s["dim"]), nn.Linear(s["dim"], s["dim"])
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        pooled = self.pool(x.transpose(1, 2)).transpose(1, 2)
        return self.dropout(self.linear(self.norm(pooled + self.positions[: pooled.shape[1]])))


class OmniMixture(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.embedding = Embedding(s["features"], s["dim"], s["max_seq_len"])
        self.coarse = Coarse(s)
        self.blocks = nn.ModuleList(OmniBlock(s, number) for number in range(s["depth"]))
        self.norm = nn.LayerNorm(s["dim"])

    def forward(self, x):
        x = self.embedding(x)
        coarse = self.coarse(x)
        for block in self.blocks:
            x = block(x, coarse)
            if block.crosses:
                coarse = self.coarse(x)
        return self.norm(x)


class StateSpaceBlock(nn.Module):
    def __init__(self, s):
        super().__init__()
        dim = s["dim"]
        self.mixer_norm, self.feed_forward_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mixer_in, self.mixer_out = nn.Linear(dim, 2 * s["state_dim"]), nn.Linear(s["state_dim"], dim)
        self.mixer_conv = CausalDepthwise(s["state_dim"], s["state_kernel"])
        self.feed_forward = FeedForward(dim, s["ff_mult"] * dim)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        gate, state = self.mixer_in(self.mixer_norm(x)).chunk(2, -1)
        x = x + self.dropout(self.mixer_out(torch.sigmoid(gate) * torch.tanh(self.mixer_conv(state))))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class StateSpace(Stack):
    def __init__(self, s):
        super().__init__(s, (StateSpaceBlock(s) for _ in range(s["depth"])))


class Head(nn.Module):
    def __init__(self, dim, horizon, outputs):
        super().__init__()
        self.norm, self.hidden, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, horizon * outputs)
        self.shape = (horizon, outputs)

    def forward(self, x):
        return self.out(nn.functional.gelu(self.hidden(self.norm(x[:, -1])))).unflatten(-1, self.shape)


class Forecaster(nn.Module):
    def __init__(self, architecture, sizes, horizon, outputs):
        super().__init__()
        self.backbone = ARCHITECTURES[architecture](sizes)
        self.head = Head(sizes["dim"], horizon, outputs)

    def forward(self, x):
        return self.head(self.backbone(x))


ARCHITECTURES = {"hybrid_transformer": HybridTransformer, "omni_mixture": OmniMixture, "state_space": StateSpace}
