"""Small plain modules that hold, between them, everything a quantizer can sit on."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from evolq.quantization import Quantization


def plain(
    scheme: str = "linear", weight_bits: int = 8, activation_bits: int = 8, **changes: object
) -> Quantization:
    """Return the plainest quantization: min-max scales, no moments matched."""
    defaults = {
        "weight_observer": "minmax",
        "activation_observer": "minmax",
        "moment_matching": False,
    }
    return Quantization(scheme, weight_bits, activation_bits, **(defaults | changes))


class TinyTransformer(nn.Module):
    """One attention block with a strided patch embedding; 3 classes, images (n, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.norm1 = nn.LayerNorm(8)
        self.qkv = nn.Linear(8, 24)
        self.proj = nn.Linear(8, 8)
        self.norm2 = nn.LayerNorm(8)
        self.fc1 = nn.Linear(8, 16)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images).flatten(2).transpose(1, 2)
        n, tokens, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).reshape(n, tokens, 3, 2, width // 2).unbind(2)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        attended = functional.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(1, 2).reshape(n, tokens, width))
        x = x + self.fc2(self.act(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


class TinyResidual(nn.Module):
    """Batch-normalized convolutions with a skip connection; 3 classes, images (n, 1, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu_(self.bn1(self.conv1(images)))
        x = x + self.bn2(self.conv2(x))
        return self.head(x.mean((2, 3)))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give all parameters and statistics values other than 0 and 1, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() < 2:
                parameter.add_(0.5)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def images(count: int = 6, seed: int = 1) -> Tensor:
    """Random images (count, 1, 8, 8)."""
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
