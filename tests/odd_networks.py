"""Small networks as people have them (input 3x64x64, ten classes), each from a public bug report of a tool like ours.

Use as factories: `visx explain PICTURE -M tests/odd_networks.py:NAME -m METHOD`; tests/test_odd.py holds them to what stands here. `base` is the plain network they differ from. What each must do stands
behind its name. They stand for their kinds: mend the kind, not the case. All build today; some fail in `visx.wrap` or behind it.
"""

import torch
import torch.nn.functional as F
from torch import nn

import visx


def wrapped(module, size=64, **options):
    return visx.wrap(module, size=size, resize=(size, size), **options)


class Base(nn.Module):
    def __init__(self, channels=3, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(inplace=True),
        )  # fmt: skip
        self.head = nn.Linear(16, classes)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


class Output(nn.Module):
    def __init__(self, change, classes=10):
        super().__init__()
        self.net, self.change = Base(classes=classes), change

    def forward(self, x):
        return self.change(self.net(x))


def base():
    return wrapped(Base())


# ---- what the output means
def softmax_inside():  # `predict` shows the model's own probabilities; `prob` methods explain them, not a softmax of them
    return wrapped(Output(lambda z: z.softmax(1)))


def sigmoid_labels():  # independent labels: probabilities are the outputs
    return wrapped(Output(lambda z: z.sigmoid()))


def one_logit():  # class 1 is the logit, class 0 is "not" (score -z); prob and logprob are the sigmoid's
    return wrapped(Output(lambda z: z[:, :1]))


def regressor():  # (B, 1) is one logit unless --means regression says otherwise: then its value is explained, in its own unit
    return wrapped(Output(lambda z: z[:, :1] * 100))


def tuple_output():  # both members could be logits: refused with both named (exit 4); --head 0 works
    return wrapped(Output(lambda z: (z, torch.cat([z, z, z], 1)[:, :25])))


# ---- layers
class ChannelsLast(nn.Module):
    """Blocks pass (B, H, W, C), as Swin's do."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, 8)
        self.block = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 24), nn.GELU())
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 10)

    def forward(self, x):
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head(self.norm(x + self.block(x)).mean((1, 2)))


def channels_last():  # a default layer; `-l norm` gives an 8x8 map with the right axes
    return wrapped(ChannelsLast())


class Tokens(nn.Module):
    """A transformer with a class token and an attention map (B, heads, N, N) that is a layer's output."""

    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 32, 8, 8)
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 32)), nn.Parameter(torch.randn(1, 65, 32) * 0.1)
        self.qkv, self.drop, self.norm, self.head = (
            nn.Linear(32, 96),
            nn.Dropout(0.0),
            nn.LayerNorm(32),
            nn.Linear(32, 10),
        )

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        q, k, v = self.qkv(self.norm(x)).reshape(len(x), 65, 3, 4, 8).permute(2, 0, 3, 1, 4)
        weights = self.drop((q @ k.transpose(-2, -1)).softmax(-1))
        x = x + (weights @ v).transpose(1, 2).reshape(len(x), 65, 32)
        return self.head(x[:, 0])


def tokens():  # default layer `norm`, the input of the attention (`qkv` is inside it and does not count); `-l drop` is no picture: exit 4
    return wrapped(Tokens())


class AuxiliaryHead(Base):
    """An auxiliary head is computed after the main one and not returned."""

    def __init__(self):
        super().__init__()
        self.aux = nn.Sequential(nn.Conv2d(8, 12, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
        self.aux_head = nn.Linear(12, 4)

    def forward(self, x):
        low = self.features[2](self.features[1](self.features[0](x)))
        high = self.features[5](self.features[4](self.features[3](low)))
        logits = self.head(high.mean((2, 3)))
        self.last_aux = self.aux_head(self.aux(low).flatten(1))
        return logits


def auxiliary_head():  # the default layer lies on the way to the logits
    return wrapped(AuxiliaryHead())


# ---- state and forward passes
class NoGrad(Base):
    @torch.no_grad()
    def forward(self, x):
        return super().forward(x)


def no_grad():  # score-only methods work; every gradient method exits 4 and says why
    return wrapped(NoGrad())


class InferenceMode(Base):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def inference_mode():  # the same
    return wrapped(InferenceMode())


class RandomDropout(Base):
    def forward(self, x):
        return self.head(F.dropout(self.features(x).mean((2, 3)), 0.5))  # training=True by default


def random_dropout():  # noticed and said; under one --seed two runs agree, in a batch or alone: one row a pass, copies too, each seeded
    return wrapped(RandomDropout())


class BatchStatistics(Base):
    def __init__(self):
        super().__init__()
        self.features[1] = nn.BatchNorm2d(8, track_running_stats=False)
        self.features[4] = nn.BatchNorm2d(16, track_running_stats=False)


def batch_statistics():  # an image's map is the same alone and in a folder: one row a pass, copies too; said
    return wrapped(BatchStatistics())


class OneAtATime(Base):
    def forward(self, x):
        return self.head(self.features(x).view(1, 16, -1).mean(2))


def one_at_a_time():  # works in a folder and for RISE
    return wrapped(OneAtATime())


class Printing(Base):
    def forward(self, x):
        print("forward", tuple(x.shape))
        return super().forward(x)


def printing():  # `--json` stays JSON Lines on standard output
    return wrapped(Printing())


class Checkpointed(Base):
    def forward(self, x):
        from torch.utils.checkpoint import checkpoint

        return self.head(checkpoint(self.features, x, use_reentrant=True).mean((2, 3)))


def checkpointed():  # gradients, or exit 4 that names re-entrant checkpointing
    return wrapped(Checkpointed())


class ExtraState(Base):
    def get_extra_state(self):
        return {"version": 3}

    def set_extra_state(self, state):
        pass


def extra_state():  # works as `base` does
    return ExtraState()


def scripted():  # methods that need scores or the input gradient work; those that need a layer or a rule work or exit 4 in words
    return wrapped(torch.jit.script(Base().eval()))


def exported():  # the same (it refuses .eval())
    shapes = ({0: torch.export.Dim("b")},)
    return wrapped(torch.export.export(Base().eval(), (torch.zeros(2, 3, 64, 64),), dynamic_shapes=shapes).module())


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.LazyConv2d(8, 3, 2, 1), nn.LazyLinear(10)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).flatten(1))


def lazy():  # one dry run, then as any other
    return Lazy()


class PartCompiled(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.head = torch.compile(Base().features, backend="eager"), nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def part_compiled():  # runs eagerly for us, again and again, and is compiled still afterwards
    return wrapped(PartCompiled())


class DoubleFirst(nn.Module):
    """The first parameter is float64, the network float32."""

    def __init__(self):
        super().__init__()
        self.temperature, self.net = nn.Parameter(torch.ones(1, dtype=torch.float64)), Base()

    def forward(self, x):
        return self.net(x) * self.temperature


def double_first():  # gets float32 pictures and works
    return wrapped(DoubleFirst())


def quantised():  # score-only methods work; gradient methods exit 4
    module = nn.Sequential(
        torch.ao.quantization.QuantStub(), nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 10), torch.ao.quantization.DeQuantStub(),
    ).eval()  # fmt: skip
    torch.backends.quantized.engine = torch.backends.quantized.supported_engines[-1]
    module.qconfig = torch.ao.quantization.get_default_qconfig(torch.backends.quantized.engine)
    torch.ao.quantization.prepare(module, inplace=True)
    module(torch.randn(2, 3, 64, 64))
    torch.ao.quantization.convert(module, inplace=True)
    return wrapped(module)
