"""States in parts.

No rank has room for the whole state of a large model. If models are in parts, each rank writes its
own to a file in a folder, with torch.distributed.checkpoint (DCP). In the state itself a stand-in
replaces such a tensor: one of its shape on the meta device, without memory. A reader may have other
parts of each tensor, or all of it, and reads only those.
"""
import contextlib
import enum
import pickle
import shutil
import warnings

import torch

from data import records
from runtime.checkpoint import checksum
from runtime.sharding import sharded
from settings import stop


def leaves(tree, path=()):
    """The values of nested dicts, by path: {"model/score.weight": ..., ...}."""
    if not isinstance(tree, dict):
        return {"/".join(map(str, path)): tree}
    return {k: v for key, x in tree.items() for k, v in leaves(x, (*path, key)).items()}


def stand_ins(tree):
    """Nested dicts with a stand-in for each tensor that is in parts."""
    if isinstance(tree, dict):
        return {k: stand_ins(v) for k, v in tree.items()}
    return torch.empty(tree.shape, dtype=tree.dtype, device="meta") if sharded(tree) else tree


def write_shards(folder, tree, world):
    """Write the parts in nested dicts of tensors to a folder, which is removed if that fails.
    Returns the checksums of its files, {} if nothing is in parts. All ranks call it."""
    shards = {name: x for name, x in leaves(tree).items() if sharded(x)}
    if world.main:
        shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed while writing
    if not shards:
        return {}
    import torch.distributed.checkpoint as dcp
    world.barrier()
    try:
        with first_error():
            dcp.save(shards, storage_writer=dcp.FileSystemWriter(folder, sync_files=False))
    except BaseException:
        if world.main:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    mine = [*folder.glob(f"__{world.rank}_*"), *[folder / ".metadata"] * world.main]
    for path in mine:
        with open(path, "r+b") as file:
            records.sync(file)
    records.sync(folder)
    sums = world.gather([{file.name: checksum(file) for file in mine}])
    files = {name: crc for some in sums for name, crc in some.items()}
    if world.main and not all((folder / name).exists() for name in files):
        stop(f"{folder.parent} is not the same folder on all machines: choose one that they share")
    return files


def read_shards(folder, tensors):
    """Fill tensors, {name: tensor, in parts or whole}, from a folder of `write_shards`. All ranks
    call it, with the same names."""
    import torch.distributed.checkpoint as dcp
    with open(folder / ".metadata", "rb") as file:
        try:
            SafeUnpickler(file).load()
        except pickle.UnpicklingError as error:
            stop(f"{folder}/.metadata is refused: {error}, and such a pickle can run any code")
    with first_error(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is ")  # that it reads with one process
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(folder))


@contextlib.contextmanager
def first_error():
    """If any rank fails, all raise its error, such as a full disk, instead of DCP's list."""
    from torch.distributed.checkpoint import CheckpointException
    try:
        yield
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None


class SafeUnpickler(pickle.Unpickler):
    """Refuses names that DCP does not write; DCP itself would load them."""
    NAMES = {"Metadata", "TensorStorageMetadata", "TensorProperties", "ChunkStorageMetadata",
             "MetadataIndex", "StorageMeta", "_StorageInfo", "_MEM_FORMAT_ENCODING", "_get_layout",
             "Size", "float32", "PosixPath", "WindowsPath"}

    def find_class(self, module, name):
        if module.split(".")[0] in ("torch", "pathlib") and name in self.NAMES:
            return super().find_class(module, name)
        if (module, name) == ("builtins", "getattr"):
            return self.member
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    @staticmethod
    def member(cls, name):
        """getattr for members of enumerations only: Python 3.11.0 to 3.11.3 need it."""
        if isinstance(cls, enum.EnumMeta) and name in cls.__members__:
            return cls[name]
        raise pickle.UnpicklingError("it asks for builtins.getattr")
