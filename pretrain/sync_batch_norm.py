"""Batch norm whose statistics in training are those of all processes' images (conf/trainer/ddp.yaml), on CPUs too."""

import torch
import torch.distributed as dist
from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's layer, which refuses CPUs; there the same in plain operations, for equal shares of the batch."""

    def forward(self, input: Tensor) -> Tensor:
        if input.is_cuda or not self.training:
            return super().forward(input)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        num_processes = dist.get_world_size()
        values = input.float()
        count = values.numel() // self.num_features * num_processes
        mean = all_reduce(values.mean((0, 2, 3))) / num_processes
        centred = values - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / num_processes
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


class SyncBatchNorms(TorchSyncBatchNorm):
    """Makes a module's batch norms synchronised ones while Lightning trains it."""

    def apply(self, model: nn.Module) -> nn.Module:
        model = super().apply(model)
        for layer in model.modules():
            if isinstance(layer, nn.SyncBatchNorm):
                layer.__class__ = SyncBatchNorm  # torch's conversion knows its own class only
        return model
