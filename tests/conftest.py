"""One thread: the tensors of the tests are small."""

import torch

torch.set_num_threads(1)
