"""One model trained by many processes: the work divided along the axes of a mesh, the result that of one process.

- `processes.py`: who takes part; `mesh.py`: how they are arranged.
- `distributed.py`: the divided model, its gradients, optimizer and resume states.
- `tensor.py`, `context.py`, `experts.py`, `pipeline.py`, `sharding.py`: one axis each, as functions of a process group.

`arrange` gives a stage what it trains with, whether by one process or by many.
"""

from parlance.models.neural import NeuralLanguageModel
from parlance.training.arrangement import Arrangement, OneProcess
from parlance.training.memory_fit import MemoryFit
from parlance.training.parallel.mesh import ParallelConfig
from parlance.training.parallel.processes import ALONE, World, started

__all__ = ["ALONE", "ParallelConfig", "World", "arrange", "started"]


def arrange(model: NeuralLanguageModel, config: ParallelConfig, world: World, fit: MemoryFit) -> Arrangement:
    """How the processes of `world` train `model`, which is whole and the same on all; it is divided in place.

    Raises UserError where the sizes do not fit the number of processes, or the model cannot be divided so.
    """
    config.sizes(world.size)
    if world.size == 1:
        return OneProcess(model, fit)
    from parlance.training.parallel.distributed import Distributed  # half a second, which one process need not wait for

    return Distributed(model, config, world, fit)
