"""timm's models (extra `visx[timm]`)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from visx.errors import unknown, usage
from visx.images.geometry import Preprocess
from visx.models import checkpoint, downloads
from visx.models.model import Weights
from visx.models.preprocessing import of_config
from visx.models.sources.builtin import imagenet_labels
from visx.models.sources.contract import Source
from visx.network.blackbox import BlackBox


class Timm(Source):
    """A timm model, with timm's data configuration as its preprocessing."""

    example = "timm/resnet10t"
    prefix = "timm/"
    title = "timm"
    channels_last = True
    owned = True
    resizable = True

    def __init__(self, spec: str) -> None:
        name = spec.removeprefix(self.prefix)
        downloads.prepare_hub()
        try:
            import timm
        except ImportError:
            raise usage(f"timm/{name} needs timm", "pip install 'visx[timm]'") from None
        if not timm.is_model(name.split(".")[0]):
            known = (f"timm/{n}" for n in timm.list_models())
            raise unknown("model", f"timm/{name}", known, "`visx models timm/PATTERN` lists them")
        self.name = name

    @classmethod
    def takes(cls, spec: str) -> bool:
        return spec.startswith(cls.prefix)

    @classmethod
    def listed(cls) -> list[tuple[str, bool]]:
        try:
            import timm
        except ImportError:
            return []
        return [(f"timm/{name}", downloads.cached_by_timm(name) is not None) for name in timm.list_models()]

    def build(self, classes: int | None = None) -> nn.Module:
        import timm

        options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
        return timm.create_model(self.name, pretrained=False, **options)

    def build_for(self, state: dict[str, Tensor], classes: int | None = None, digest: str = "") -> nn.Module:
        """The network at its own size, or at that of `preprocess` where more of the shapes in `state` fit it: a checkpoint is
        trained at the one or the other. A backbone has the head that `state` has."""
        own = self.build(classes)
        if classes is None and getattr(own, "num_classes", None) == 0:
            head = (getattr(own, "pretrained_cfg", None) or {}).get("classifier")
            classes = checkpoint.rows_in(own, state, f"{head}.weight")
            own = own if classes is None else self.build(classes)
        if not self._other_size():
            return own
        sized = self.sized(self.build(classes))
        return min(own, sized, key=lambda module: checkpoint.shapes_that_differ(module, state))

    def sized(self, module: nn.Module) -> nn.Module:
        """The network for pictures of the size of `preprocess`. timm resamples its position embedding; a network that cannot
        be told of a size takes any, or examining it shows that it does not take this one."""
        set_input_size: Any = getattr(module, "set_input_size", None)
        if self._other_size() and set_input_size is not None:
            set_input_size(img_size=self.preprocess().crop)
        return module

    def _other_size(self) -> bool:
        """Whether the user states another size than timm's."""
        return self.preprocess().crop != type(self).preprocess(self).crop

    def preprocess(self) -> Preprocess:
        import timm

        pretrained = timm.get_pretrained_cfg(self.name)
        return of_config(timm.data.resolve_data_config({}, pretrained_cfg=pretrained.to_dict() if pretrained else {}))

    def labels(self, module: nn.Module | BlackBox) -> tuple[str, ...] | None:
        from timm.data import ImageNetInfo, infer_imagenet_subset

        classes = getattr(module, "num_classes", 0)
        if classes == 1000:
            return imagenet_labels()
        subset = infer_imagenet_subset(module)
        return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None

    def default(self) -> tuple[nn.Module, Weights]:
        import timm

        config = timm.get_pretrained_cfg(self.name)
        where = str(config.hf_hub_id or config.url) if config else "timm"
        with downloads.downloading(f"timm's default weights of {self.name}", where):
            file = downloads.cached_by_timm(self.name)
            if file is None and config is not None and config.hf_hub_id:
                downloads.reach_hub()
            # A cached file is loaded without asking the hub for a newer one, which takes a minute without a network
            overlay = {"file": file} if file else None
            module = timm.create_model(self.name, pretrained=True, pretrained_cfg_overlay=overlay)
        tag = getattr(module, "pretrained_cfg", {}).get("tag") or "default"
        return module, Weights(f"timm {tag}", checkpoint.digest_state(module))
