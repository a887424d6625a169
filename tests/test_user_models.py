"""Modules as users bring them: each works as it does for them, or one error says what to change."""

import copy
from typing import Any

import pytest
import torch
import torchvision
from tiny_models import TinyResidual, images, plain, randomized
from torch import Tensor, nn
from torch.nn import functional

from evolq.errors import InputError
from evolq.losses.objective import predict
from evolq.network.quantized import QuantizedNetwork, quantize
from evolq.points import QUANTIZER_ROLES, role, select
from evolq.starts.calibration import calibrate


class Base(nn.Module):
    """Two linear layers; images (n, 1, 8, 8), 3 classes. Each example changes one thing of it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(64, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Any:
        return self.fc2(self.hidden(x))

    def hidden(self, x: Tensor) -> Tensor:
        return self.fc1(x.flatten(1)).relu()


def works(model: nn.Module, scheme: str = "linear") -> QuantizedNetwork:
    """Quantize a module that must work: at 8 bits, for one image and several; none is changed."""
    model, data = randomized(model), images()
    kept, buffers = data.clone(), copy.deepcopy(dict(model.named_buffers()))
    network = quantize(model, data, plain(scheme))
    wanted = predict(model, data)
    start = calibrate(network, data)
    for count in (1, 6):
        logits = network(start, data[:count])
        assert logits.shape == (count, 3)
        # 8 bits leave 0.2 % of each tensor's range
        assert (logits - wanted[:count]).norm() < 0.05 * wanted[:count].norm()
    assert torch.equal(data, kept)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    return network


@pytest.mark.parametrize("name", QUANTIZER_ROLES)
def test_a_parameter_of_the_model_is_a_weight_whatever_its_name(name: str) -> None:
    class Named(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.ones(6)))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.hidden(x) * self.get_parameter(name))

    network = works(Named())
    entry = f"{name}.weight"
    assert role(entry) == "weight"
    assert entry in network.weights
    start = calibrate(network, images())
    of_quantizers = {f"{n}.{r}" for n, site in network.sites.items() for r in site.roles()}
    assert set(select(start, QUANTIZER_ROLES)) == of_quantizers
    assert set(select(start, ["weight"])) == set(network.weights)


def test_a_weight_of_a_product_may_have_such_a_name() -> None:
    class Scaled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.hidden(x) @ self.scale)

    assert works(Scaled()).sites["scale.weight"].kind == "weight"


@pytest.mark.parametrize("scheme", ["weights", "linear", "full", "published"])
def test_a_layer_may_read_its_weight_after_a_view_of_it(scheme: str) -> None:
    class Tied(Base):
        def __init__(self) -> None:
            super().__init__()
            self.square = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(self.square(self.hidden(x) @ self.square.weight.T))

    network = works(Tied(), scheme)
    assert {"square.weight", "square.weight_1"} <= network.sites.keys()


@pytest.mark.parametrize("pack", [lambda y: (y,), lambda y: {"logits": y, "loss": None}])
def test_one_tensor_is_unwrapped(pack: Any) -> None:
    class Packed(Base):
        def forward(self, x: Tensor) -> Any:
            return pack(super().forward(x))

    works(Packed())


def test_several_tensors_are_refused() -> None:
    class Two(Base):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x), "features": self.hidden(x)}

    for function in (lambda: quantize(Two(), images(), plain()), lambda: predict(Two(), images())):
        with pytest.raises(InputError, match="Two returns 2 tensors; wanted one, the logits"):
            function()


@pytest.mark.parametrize("change", [nn.ReLU(inplace=True), lambda x: x.sub_(0.5)])
def test_images_are_never_changed(change: Any) -> None:
    class Inplace(Base):
        def forward(self, x: Tensor) -> Tensor:
            change(x)
            return super().forward(x)

    works(Inplace())


def test_forward_may_write_a_buffer() -> None:
    class Counting(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return super().forward(x)

    works(Counting())


class TestOwnMethods:
    """timm's `reparameterize_model` calls `fuse`, `reparameterize` or `switch_to_deploy`."""

    def test_one_that_wants_arguments(self) -> None:
        class Fusing(Base):
            def fuse(self, a: Tensor, b: Tensor) -> Tensor:
                return a + b

            def forward(self, x: Tensor) -> Tensor:
                y = self.hidden(x)
                return self.fc2(self.fuse(y, y))

        works(nn.Sequential(Fusing()))

    def test_one_that_means_something_else(self) -> None:
        class Drawing(nn.Linear):
            def reparameterize(self) -> None:
                with torch.no_grad():
                    self.weight.mul_(0.5)

        network = works(nn.Sequential(nn.Flatten(), Drawing(64, 3)))
        assert set(network.weights) == {"1.weight", "1.bias"}

    def test_one_that_merges_as_it_should(self) -> None:
        class Branches(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a, self.b = nn.Linear(64, 3), nn.Linear(64, 3)

            def forward(self, x: Tensor) -> Tensor:
                return self.a(x) + self.b(x)

            def fuse(self) -> nn.Linear:
                merged = nn.Linear(64, 3)
                merged.weight.data = self.a.weight.data + self.b.weight.data
                merged.bias.data = self.a.bias.data + self.b.bias.data
                return merged

        network = works(nn.Sequential(nn.Flatten(), Branches()))
        assert set(network.weights) == {"1.weight", "1.bias"}


def test_tensors_kept_of_a_training_step() -> None:
    class Keeping(Base):
        def forward(self, x: Tensor) -> Tensor:
            self.features = self.hidden(x)
            self.history = [*getattr(self, "history", []), {"features": self.features}]
            return self.fc2(self.features)

    model = Keeping()
    model(images()).sum().backward()
    assert model.features.grad_fn is not None
    works(model)


def test_what_cannot_be_copied_is_told() -> None:
    class Uncopied(Base):
        def __init__(self) -> None:
            super().__init__()
            self.stream = iter(x for x in range(3))

    with pytest.raises(InputError, match=r"Uncopied cannot be copied \(.*generator"):
        quantize(Uncopied(), images(), plain())


class TestOperatorsOffTheTable:
    @pytest.mark.parametrize("scheme", ["weights", "linear", "full"])
    def test_deformable_convolution(self, scheme: str) -> None:
        class Deformable(Base):
            def __init__(self) -> None:
                super().__init__()
                self.offsets = nn.Conv2d(1, 18, 3, padding=1)
                self.deform = torchvision.ops.DeformConv2d(1, 1, 3, padding=1)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(self.deform(x, self.offsets(x)))

        with pytest.raises(InputError, match=r"deform_conv2d.* in module 'deform'"):
            quantize(randomized(Deformable()), images(), plain(scheme))
        quantize(randomized(Deformable()), images(), plain("none"))

    @pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
    def test_recurrent_layers(self, kind: type[nn.RNN]) -> None:
        class Recurrent(Base):
            def __init__(self) -> None:
                super().__init__()
                self.cells = kind(8, 8, batch_first=True)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(self.cells(x[:, 0])[0])

        with pytest.raises(InputError, match="in module 'cells'"):
            quantize(randomized(Recurrent()), images(), plain())

    @pytest.mark.parametrize(
        "product",
        [
            lambda x, w: torch.einsum("nck,kl->ncl", x, w),
            lambda x, w: torch.tensordot(x, w, 1),
            lambda x, w: torch.linalg.vecdot(x, w[0])[..., None] + x,
            lambda x, w: torch.baddbmm(x, x, x),
        ],
    )
    def test_products(self, product: Any) -> None:
        class Product(Base):
            def __init__(self) -> None:
                super().__init__()
                self.mix = nn.Parameter(torch.ones(8, 8))

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(product(x[:, 0], self.mix))

        model = randomized(Product())
        try:
            network = quantize(model, images(), plain())
        except InputError as error:
            assert "cannot be quantized" in str(error)  # noqa: PT017
        else:  # taken apart into products of the table
            assert "mix" in network.sites


class TestRandom:
    @pytest.mark.parametrize(
        ("noise", "name"),
        [
            (lambda x: functional.dropout(x, 0.002), "aten.dropout"),
            (lambda x: functional.alpha_dropout(x, 0.1, True), "dropout"),
            (lambda x: x + torch.randn_like(x), "aten.randn_like"),
            (lambda x: x * x.new_empty(x.shape[0], 1).bernoulli_(0.9), "aten.bernoulli"),
            (
                lambda x: functional.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
                "scaled_dot_product_attention",
            ),
        ],
    )
    def test_active_noise_is_refused(self, noise: Any, name: str) -> None:
        class Inner(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return noise(x)

        class Noisy(Base):
            def __init__(self) -> None:
                super().__init__()
                self.inner = Inner()

            def forward(self, x: Tensor) -> Tensor:
                return self.fc2(self.inner(self.hidden(x)))

        with pytest.raises(InputError, match=rf"{name}.* in module 'inner' is random"):
            quantize(Noisy(), images(), plain())

    def test_noise_that_is_switched_off_works(self) -> None:
        class Quiet(Base):
            def forward(self, x: Tensor) -> Tensor:
                y = functional.dropout(self.hidden(x), 0.5, self.training)
                return self.fc2(functional.dropout(y, 0.0))

        works(Quiet())


class TestOtherImagesOfABatch:
    def test_batch_norm_without_running_statistics(self) -> None:
        model = nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False), Base())
        with pytest.raises(InputError, match=r"aten.batch_norm.* in module '0' has no running"):
            quantize(randomized(model), images(), plain())

    def test_instance_norm_is_by_image(self) -> None:
        works(nn.Sequential(nn.InstanceNorm2d(1), Base()))

    @pytest.mark.parametrize("scheme", ["none", "linear"])
    def test_any_other_dependence_is_seen(self, scheme: str) -> None:
        class Centered(Base):
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x - x.mean(0))

        with pytest.raises(InputError, match="depend on the other images of its batch"):
            quantize(randomized(Centered()), images(), plain(scheme))

    def test_squeeze_leaves_a_single_image_a_row(self) -> None:
        class Squeezed(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 3, 1)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.conv(x).mean((2, 3), keepdim=True)).squeeze()

        model = randomized(Squeezed())
        network = quantize(model, images(), plain())
        start = calibrate(network, images())
        whole = network(start, images())
        assert whole.shape == (6, 3)
        torch.testing.assert_close(network(start, images(1)), whole[:1])
        torch.testing.assert_close(predict(model, images()[:5], 4), predict(model, images())[:5])


class TestWrappers:
    def test_data_parallel(self) -> None:
        network = works(nn.DataParallel(TinyResidual()))
        assert "conv1.weight" in network.weights

    def test_compiled(self) -> None:
        model = randomized(TinyResidual())
        wanted = set(quantize(model, images(), plain()).names)
        assert set(works(torch.compile(model)).names) == wanted
        inside = randomized(TinyResidual())
        inside.conv1 = torch.compile(inside.conv1)
        assert set(works(inside).names) == wanted
        inside.compile()
        assert set(works(inside).names) == wanted


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_names_float32(dtype: torch.dtype) -> None:
    with pytest.raises(InputError, match=r"fc1.weight of Base is b?float16.* need float32"):
        quantize(Base().to(dtype), images(), plain())
