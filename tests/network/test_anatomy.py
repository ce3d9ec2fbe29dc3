"""The default layer, the CAM head and the activations are found by running a network, however it is written."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visx.errors import ExitCode, VisxError
from visx.models import load_model, wrap


class Net(nn.Module):
    """Two convolutions and a head that is given as a function, written the way people write heads."""

    def __init__(self, head: str, relu: str = "module") -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.maxpool = nn.AdaptiveMaxPool2d(1)
        self.fc = nn.Linear(8, 4)
        self.fc_flat = nn.Linear(8 * 16 * 16, 4)
        self.fc2 = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 4))
        self.conv_head = nn.Conv2d(8, 4, 1)
        self.head, self.relu = head, relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.stem(x))
        if self.relu == "module":
            x = self.act(x)
        elif self.relu == "functional":
            x = F.relu(x)
        elif self.relu == "in-place":
            x = F.relu(x, inplace=True)
        return getattr(self, self.head)(x)

    def gap(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(x), 1))

    def gap_dropout(self, x: Tensor) -> Tensor:
        return self.fc(self.drop(self.pool(self.drop(x)).flatten(1)))

    def mean(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def mean_keep(self, x: Tensor) -> Tensor:
        return self.fc(x.mean([2, 3], keepdim=True).squeeze(-1).squeeze(-1))

    def folded(self, x: Tensor) -> Tensor:
        return self.fc(x.view(x.shape[0], x.shape[1], -1).mean(-1))

    def twice(self, x: Tensor) -> Tensor:
        return self.fc(x.mean(3).mean(2))

    def avg_pool(self, x: Tensor) -> Tensor:
        return self.fc(F.avg_pool2d(x, x.shape[2:]).view(x.shape[0], -1))

    def maximum(self, x: Tensor) -> Tensor:
        return self.fc(self.maxpool(x).flatten(1))

    def flat(self, x: Tensor) -> Tensor:
        return self.fc_flat(x.flatten(1))

    def mlp(self, x: Tensor) -> Tensor:
        return self.fc2(self.pool(x).flatten(1))

    def class_maps(self, x: Tensor) -> Tensor:
        return self.pool(self.conv_head(self.drop(x))).flatten(1)

    def class_maps_relu(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv_head(x))).flatten(1)

    def pooled_conv(self, x: Tensor) -> Tensor:
        return self.conv_head(self.pool(x)).flatten(1)


HEADS = {
    "gap": True, "gap_dropout": True, "mean": True, "mean_keep": True, "folded": True, "twice": True, "avg_pool": True,
    "maximum": False, "flat": False, "mlp": False, "class_maps": True, "class_maps_relu": True, "pooled_conv": True,
}  # fmt: skip


@pytest.mark.parametrize("relu", ["module", "functional", "in-place", "none"])
@pytest.mark.parametrize(("head", "gap"), HEADS.items())
def test_default_layer_and_head_however_they_are_written(head: str, gap: bool, relu: str) -> None:
    found = wrap(Net(head, relu), size=16).anatomy
    assert found.default_layer == ("act" if relu == "module" else "body")
    assert found.gap_head is gap
    assert found.classes == 4


@pytest.mark.parametrize(
    ("name", "layer", "gap"),
    [
        ("resnet18", "layer4", True),
        ("vgg11_bn", "features", False),
        ("squeezenet1_1", "features", True),
        ("densenet121", "features", True),
        ("googlenet", "inception5b", True),
        ("mobilenet_v3_small", "features", False),
        ("shufflenet_v2_x0_5", "conv5", True),
        ("efficientnet_b0", "features", True),
    ],
)
def test_torchvision_networks(name: str, layer: str, gap: bool) -> None:
    found = load_model(name, "random").anatomy
    assert (found.default_layer, found.gap_head) == (layer, gap)


def test_a_wrapped_network_keeps_the_outermost_name() -> None:
    class Wrapper(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net("gap")

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    assert wrap(Wrapper(), size=16).anatomy.default_layer == "net.act"


def test_squeeze_and_excitation_is_not_the_head() -> None:
    class Excited(Net):
        def gap(self, x: Tensor) -> Tensor:
            x = x * torch.sigmoid(x.mean((2, 3), keepdim=True))
            return super().gap(x)

    found = wrap(Excited("gap"), size=16).anatomy
    assert found.gap_head
    assert found.default_layer != "pool"


def test_activations_are_counted_by_call() -> None:
    class Reused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.relu = nn.ReLU6(inplace=True)
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.relu(self.conv(x))
            return F.gelu(self.relu(self.fc(torch.relu(x).clamp(min=0).mean((2, 3)))))

    found = wrap(Reused(), size=16).anatomy
    assert found.relus == 4
    assert found.others == ("gelu",)


@pytest.mark.parametrize("output", ["tuple", "dict", "integers", "map"])
def test_outputs_that_are_not_logits_are_refused_with_a_way_on(output: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> object:
            y = x.mean((2, 3))
            return {"tuple": (y, y), "dict": {"out": x}, "integers": y.argmax(1), "map": x}[output]

    with pytest.raises(VisxError) as caught:
        _ = wrap(Odd(), size=16).anatomy
    assert caught.value.code == ExitCode.UNSUPPORTED
    assert caught.value.hint
