"""An ONNX file as a black box, run by onnxruntime."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from visx.errors import unknown
from visx.models.onnx.reading import OWN, File, last_activation
from visx.models.onnx.runtime import open_session
from visx.network.function import Function
from visx.network.heads import Squash
from visx.network.members import nearest
from visx.network.outputs import Outputs

_FULL = re.compile(r"allocate memory|out of memory|bad_alloc|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)


class OnnxBox(Function):
    """Scores of an ONNX file. A batch has the size that the file states, filled up with copies, where it states one."""

    def __init__(self, name: str, file: File, *, nhwc: bool = False, bgr: bool = False) -> None:
        batch = file.input.dims[0]
        super().__init__(name, nhwc=nhwc, bgr=bgr, most=batch, exact=batch is not None)
        self.file, self._fetched = file, list(file.outputs)
        self._element = file.input.dtype
        self.dtype = torch.float64 if self._element == torch.float64 else torch.float32
        self._session: Any = None

    way_on = f"masks and maps are not explained, scores of classes are; {OWN}"

    @property
    def about(self) -> str:  # type: ignore[override]
        """How it computes, in words."""
        import onnxruntime

        providers = ", ".join(self._session.get_providers()) if self._session else "no session yet"
        return f"onnxruntime {onnxruntime.__version__} ({providers})"

    def move(self, device: torch.device) -> torch.device:
        self._session, self.device, remark = open_session(self.file.path, device)
        self.remarks += (remark,) if remark else ()
        return self.device

    def squash(self, member: str | None) -> Squash:
        return last_activation(self.file.model, self.file.outputs[0] if member is None else member)

    @property
    def _single(self) -> bool:
        return len(self.file.outputs) == 1

    def examine(self, shape: Sequence[int], means: str | None = None, head: str | int | None = None) -> Outputs:
        if head is not None and self._single:
            if nearest({self.file.outputs[0]: torch.empty(0)}, str(head)) is None:
                raise unknown("head", str(head), self.file.outputs)
            head = None
        self._fetched = list(self.file.outputs)
        outputs = super().examine(shape, means, head)
        if outputs.member is not None:  # the others need not be handed over
            self._fetched = [outputs.member]
        return outputs

    def answer(self, x: Tensor) -> Any:
        if self._session is None:
            self.move(self.device)
        if self._element == torch.uint8:
            x = x.round().clamp(0, 255)
        x = x.to(self._element)
        try:
            outputs = (
                self._bound(x) if x.is_cuda else self._session.run(self._fetched, {self.file.input.name: x.numpy()})
            )
        except Exception as error:  # onnxruntime has a type of its own for each kind of failure
            if _FULL.search(str(error)):
                raise MemoryError(str(error)) from error
            raise
        tensors = {name: torch.from_numpy(array) for name, array in zip(self._fetched, outputs, strict=True)}
        return tensors if not self._single else tensors[self._fetched[0]]

    def _bound(self, x: Tensor) -> list[Any]:
        """The outputs for pictures that lie on an accelerator, which are read where they lie."""
        import numpy as np

        binding, device = self._session.io_binding(), self.device
        kind = {torch.float16: np.float16, torch.float64: np.float64, torch.uint8: np.uint8}.get(x.dtype, np.float32)
        binding.bind_input(self.file.input.name, device.type, device.index or 0, kind, tuple(x.shape), x.data_ptr())
        for name in self._fetched:
            binding.bind_output(name, "cpu")
        if x.is_cuda:
            torch.cuda.current_stream(x.device).synchronize()  # onnxruntime has a stream of its own
        self._session.run_with_iobinding(binding)
        outputs: list[Any] = binding.copy_outputs_to_cpu()
        return outputs

    def hint(self, error: BaseException) -> str:
        sizes = re.search(r"dimension|shape|broadcast|axis", str(error), re.IGNORECASE)
        free = None in (self.file.input.dims[1:3] if self.nhwc else self.file.input.dims[2:])
        if sizes and free:
            return "the file does not say the size that it takes: --size N (or H,W); perhaps --layout NHWC"
        return "onnx.checker.check_model(FILE, full_check=True) may say more"

    def as_module(self, shape: Sequence[int]) -> tuple[nn.Module | None, str]:
        from visx.models.onnx.converted import convert

        return convert(self, self.file, shape)
