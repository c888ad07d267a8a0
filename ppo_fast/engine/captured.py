"""A function without arguments as a CUDA graph: launched as a whole instead of kernel by kernel."""

from collections.abc import Callable
from typing import Any

import torch


class CudaGraph:
    """A function without arguments, captured once as a CUDA graph and replayed by calling this object.

    The function must read and write tensors that stay where they are, with static shapes and no host sync. It is run
    three times before capture, to warm up and to compile.

    Args:
        function: returns None, a tensor or a tuple of tensors; a replay refreshes these very tensors.
        generators: random generators it draws from; a replay goes on with their streams.
    """

    def __init__(self, function: Callable[[], Any], generators: list[torch.Generator]) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                function()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        for generator in generators:
            self.graph.register_generator_state(generator)
        with torch.cuda.graph(self.graph):
            self.result = function()

    def __call__(self) -> Any:
        self.graph.replay()
        return self.result
