"""Batch norm whose statistics in training are those of all processes' images (conf/trainer/ddp.yaml), on CPUs too."""

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over all processes; so is the gradient's."""

    @staticmethod
    def forward(ctx: FunctionCtx, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> Tensor:
        return SumOverProcesses.forward(ctx, gradient)


class CPUSyncBatchNorm(nn.BatchNorm2d):
    """What torch's SyncBatchNorm does on GPUs, the only place where it works, for equal shares of the batch."""

    def forward(self, images: Tensor) -> Tensor:
        if not self.training:
            return super().forward(images)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        assert self.num_batches_tracked is not None
        num_processes = dist.get_world_size()
        values = images.float()
        count = values.numel() // self.num_features * num_processes
        mean = SumOverProcesses.apply(values.mean((0, 2, 3))) / num_processes
        centred = values - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().mean((0, 2, 3))) / num_processes
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(images.dtype)


class SyncBatchNorms(TorchSyncBatchNorm):
    """Makes a module's batch norms synchronised ones while Lightning trains it."""

    def apply(self, model: nn.Module) -> nn.Module:
        if dist.get_backend() != "gloo":  # the parameters are not on their device yet
            return super().apply(model)
        for layer in model.modules():
            if type(layer) is nn.BatchNorm2d:
                layer.__class__ = CPUSyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if type(layer) is CPUSyncBatchNorm:
                layer.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        return super().revert(model)
