"""The two small networks of the embedded benchmark, with random weights.

Both take float images of shape (images, 1, 28, 28), normalized with ``MEAN`` and ``STD``, and
return logits of shape (images, 10).  The trained weights lie in ``evolq/bundled``;
``benchmarks/build_bundled.py`` trains them.
"""

from __future__ import annotations

from timm.models.resnet import BasicBlock, ResNet
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MEAN = 0.2860
"""Mean of the pixels of the 60,000 training images of Fashion-MNIST, in units of full white."""

STD = 0.3530
"""Standard deviation of the same pixels, in units of full white."""

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
"""Names of the ten labels, as in the README of Fashion-MNIST."""


def fashion_vit() -> nn.Module:
    """A small vision transformer (Dosovitskiy et al. 2021), with random weights.

    49 patches of 4 x 4 pixels and a class token, embedding dimension 64, six blocks with LayerNorm,
    four heads, and an MLP of hidden width 128 with GELU; the class token is classified.  205,962
    parameters.

    Returns:
        A module from images (images, 1, 28, 28) to logits (images, 10), in training mode.
    """
    model = VisionTransformer(
        img_size=28,
        patch_size=4,
        in_chans=1,
        num_classes=len(CLASSES),
        embed_dim=64,
        depth=6,
        num_heads=4,
        mlp_ratio=2,
        weight_init="jax",  # Xavier: timm's default, a deviation of 0.02, suits wider networks
    )
    # As large as the patches' embeddings: background patches are equal but for their position, and
    # timm's 0.02 delays the start of training by half an epoch.
    assert model.pos_embed is not None
    nn.init.normal_(model.pos_embed, std=1.0)
    return model


def fashion_resnet() -> nn.Module:
    """A small ResNet (He et al. 2016) with batch normalization, with timm's random initialization.

    As usual for small images, a 3 x 3 convolution without pooling takes the place of the 7 x 7
    stem.  Four stages of one basic block each, with 16, 32, 64 and 128 channels at 28, 14, 7 and 4
    pixels; global average pooling.  308,538 parameters.

    Returns:
        A module from images (images, 1, 28, 28) to logits (images, 10), in training mode.
    """
    channels = (16, 32, 64, 128)
    model = ResNet(
        BasicBlock,  # type: ignore[arg-type]  # timm means the class
        layers=(1, 1, 1, 1),
        channels=channels,
        num_classes=len(CLASSES),
        in_chans=1,
        # Only this stem type lets the first stage have another width than 64; it is replaced below.
        stem_type="deep",
        stem_width=channels[0] // 2,
    )
    stem = nn.Conv2d(1, channels[0], kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.conv1 = stem  # type: ignore[assignment]  # timm declares the deep stem only
    model.maxpool = nn.Identity()  # type: ignore[assignment]
    return model
